"""The training loop and its parts. Needs the extra ``experiments``; ``import jdeq`` does not."""

from jdeq.training.averaging import average_parameters, averaged_params
from jdeq.training.checkpoints import CheckpointError, Checkpoints, Restored
from jdeq.training.equilibrium import Equilibrium, equilibrium_of
from jdeq.training.eval_step import EvalStep, Evaluation, make_eval_step
from jdeq.training.evaluation import confusion_matrix, evaluate, evaluate_samples, mean_iou
from jdeq.training.flops import count_flops
from jdeq.training.hardware import peak_flops, peak_memory
from jdeq.training.loop import Loop, NonFiniteError, Phase
from jdeq.training.losses import LossFn, LossOutput, cross_entropy_loss, squared_error_loss
from jdeq.training.mesh import Layout, make_mesh, partition_spec
from jdeq.training.metrics import JsonLines, Sink, TensorBoard, Terminal, read_metrics, summarize
from jdeq.training.optimizers import (
    adamw,
    one_cycle,
    sgd,
    warmup_constant,
    warmup_cosine,
    warmup_steps_decay,
)
from jdeq.training.profiling import Profile
from jdeq.training.state import TrainState, abstract_state, make_init
from jdeq.training.step import TrainStep, make_train_step
from jdeq.training.stop import StopRequest
from jdeq.training.watch import Watch
