"""How the matrices of the models here are split over devices: the axis by a parameter's path.

Pairs as in Shoeybi et al. (2019), Megatron-LM: the first layer of a block by its outputs, the
second by its inputs, so that the block communicates once. Tables of tokens are split by token.
"""

from collections.abc import Mapping

TENSOR_RULES: Mapping[str, int] = {
    # First layers: dense, convolutions, the gates of a Trellis or an LSTM, a monotone kernel.
    r"/(up|qkv|conv1|Conv_0|gates|r)/(kernel|direction)$": -1,
    r"^(inject|stem)/(kernel|direction)$": -1,
    r"LSTMCell_\d+/[ih][ifgo]/kernel$": -1,
    r"^[ab]\d+(_down)?$": -1,
    # Second ones.
    r"/(down|out|conv2|Conv_1)/(kernel|direction)$": -2,
    # Between and within scales.
    r"/(fuse\d+to\d+_conv\d*|post\d+_conv)/(kernel|direction)$": -1,
    # Tokens and classes.
    r"(^|/)(table\d+|embedding)$": 0,
    r"^(head|classify)/kernel$": -1,
}
"""By regular expression, see `jdeq.training.partition_spec`."""
