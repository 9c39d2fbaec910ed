"""Studies beside those of stability: image models, reversible cells, copy memory."""

from experiments.studies import columns
from experiments.studies.study import Study, Table, Variant

_UNROLLED = ("--gradient.kind", "unrolled")
_IMPLICIT = (
    *("--gradient.kind", "implicit", "--gradient.rtol", "1e-4", "--gradient.max-steps", "8"),
    *("--solver.kind", "anderson", "--solver.beta", "None", "--solver.rtol", "1e-3"),
    *("--solver.max-steps", "8"),
)
_IMPLICIT_DIGITS = (
    *_IMPLICIT,
    *("--regularizer.gamma", "1.0", "--regularizer.probability", "0.5"),
)
_IMPLICIT_TEXT = (
    *_IMPLICIT,
    *("--regularizer.gamma", "4.0", "--pretrain.steps", "150", "--pretrain.evaluations", "4"),
)
_COSTS = (
    columns.evaluations(),
    columns.step_alone(),
    columns.reported("step_temporary_mib", "temporary memory (MiB)", digits=1),
    columns.reported("spectral_radius_mean", "spectral radius"),
)
_IMAGES = (
    columns.seeds(),
    columns.reported("parameters", "parameters", digits=0),
    columns.quality("as trained", "accuracy", "accuracy as trained (%)"),
    columns.quality("after 6", "accuracy"),
    columns.quality("rtol 0.001", "accuracy", "to rtol 0.001 in at most 50"),
    columns.solved("rtol 0.001", "nfe_forward", "nfe of that"),
    *_COSTS,
)
_SCENES = (
    columns.seeds(),
    *(columns.quality(f"after {budget}", "mean_iou") for budget in (2, 4, 6, 8)),
    columns.quality("rtol 0.01", "mean_iou", "to rtol 0.01 in at most 50"),
    columns.solved("rtol 0.01", "nfe_forward", "nfe of that"),
    columns.solved("rtol 0.01", "converged", "converged of that (%)", scale=100),
    *_COSTS,
)

OTHERS = (
    Study(
        name="image_models",
        title="Image models side by side",
        about="""\
Table 2 of Bai, Koltun and Kolter (2021) in small: digits, 560 steps of 96 (`digits_deqvit`:
1000), 360 test images; accuracy in %.

Published, CIFAR-10: ResNet-18 93.0, ResNet-101 93.8, DenseNet-121 95.0, monotone DEQ 89.4 (nfe
24), MDEQ 93.6 (17), MDEQ + JR 93.1 (6); RevDEQ 94.4.""",
        variants=(
            Variant(label="`digits_resnet` (explicit)", run="digits_resnet"),
            Variant(label="`digits_mdeq_noreg`", run="digits_mdeq_noreg"),
            Variant(label="`digits_mdeq` (gamma 2)", run="digits_mdeq"),
            Variant(label="`digits_mondeq`", run="digits_mondeq"),
            Variant(label="`digits_deqvit` (gamma 1)", run="digits_deqvit"),
            Variant(label="`digits_revdeq`", run="digits_revdeq"),
        ),
        after=("step_time",),
        tables=(Table(columns=_IMAGES),),
    ),
    Study(
        name="scenes",
        title="Segmentation of scenes",
        about="""\
Scenes of four digits, 64x64, 500 steps of 8, 64 test scenes: mean IoU over 11 classes in %.
Needs `pip install -e '.[data]'`.""",
        variants=(
            Variant(label="gamma 1", run="scenes_mdeq_seg"),
            Variant(
                label="gamma 0", run="scenes_mdeq_seg", overrides=("--regularizer.gamma", "0.0")
            ),
        ),
        after=("step_time",),
        tables=(Table(columns=_SCENES),),
    ),
    Study(
        name="reversible_digits",
        title="Reversible cell on the digits",
        about="""\
The single-scale cell of width 32, 560 steps of 96: the same cell, data, steps and optimiser,
trained through the steps of the reversible pair, by backpropagation through the same steps, and
implicitly with the Jacobian penalty. Accuracy in %.""",
        variants=(
            Variant(label="RevDEQ, 2 steps, beta 0.5", run="digits_revdeq"),
            Variant(label="unrolled, the same steps", run="digits_revdeq", overrides=_UNROLLED),
            Variant(label="implicit + JR", run="digits_revdeq", overrides=_IMPLICIT_DIGITS),
        ),
        after=("step_time",),
        tables=(
            Table(
                columns=(
                    columns.seeds(),
                    *(columns.quality(f"after {budget}", "accuracy") for budget in (2, 4, 6)),
                    columns.quality("rtol 0.01", "accuracy", "to rtol 0.01"),
                    *_COSTS,
                )
            ),
        ),
    ),
    Study(
        name="reversible_text",
        title="Reversible language model on the standard library's bytes",
        about="""\
The block of width 96, windows of 128 bytes, 600 steps of 8 windows, trained in the same three
ways. Bits per byte on 8192 bytes spread over the test files (a sampling error of about 0.04, the
same bytes for all).""",
        variants=(
            Variant(label="RevDEQ, 4 steps, beta 0.5", run="stdlib_revdeq_lm"),
            Variant(label="unrolled, the same steps", run="stdlib_revdeq_lm", overrides=_UNROLLED),
            Variant(label="implicit + JR", run="stdlib_revdeq_lm", overrides=_IMPLICIT_TEXT),
        ),
        after=("step_time",),
        tables=(
            Table(
                columns=(
                    columns.seeds(),
                    *(
                        columns.quality(f"after {budget}", "bits_per_byte")
                        for budget in (2, 4, 8, 16)
                    ),
                    columns.quality("rtol 0.01", "bits_per_byte", "to rtol 0.01 in at most 50"),
                    *_COSTS,
                )
            ),
        ),
    ),
    Study(
        name="copy_memory",
        title="Copy memory",
        about="""\
Ten symbols to be repeated after T blanks, loss in nats over all T + 20 places. Remembering
nothing costs 0.2971 at T 50 and 0.0945 at T 200. Published at T 400 (DEQ-TrellisNet of 14K
parameters): 3.5e-6; TCN 2.7e-5, LSTM 0.05.""",
        variants=(
            Variant(label="Trellis DEQ, T 50", run="copy_memory"),
            Variant(label="Trellis DEQ, T 200", run="copy_memory_t200"),
            Variant(label="LSTM, T 50", run="copy_memory_lstm"),
        ),
        seeds=(0,),
        after=("step_time",),
        tables=(
            Table(
                columns=(
                    columns.seeds(),
                    columns.reported("parameters", "parameters", digits=0),
                    columns.last("test", "loss_nats", "test loss (nats)", digits=5),
                    columns.reported("steps", "steps", digits=0),
                    *_COSTS,
                )
            ),
        ),
    ),
    Study(
        name="trellis_text",
        title="DEQ-TrellisNet on the standard library's bytes",
        about="""\
With the parameters of the DEQ-Transformers above (within 1%) and their steps and bytes, on 256
test windows of 64 without a memory: not comparable with them to the last digit.""",
        variants=(Variant(label="`stdlib_trellis`", run="stdlib_trellis"),),
        seeds=(0,),
        after=("step_time",),
        tables=(
            Table(
                columns=(
                    columns.seeds(),
                    columns.reported("parameters", "parameters", digits=0),
                    *(columns.quality(f"after {b}", "bits_per_byte") for b in (4, 12, 24)),
                    columns.quality("rtol 0.01", "bits_per_byte", "to rtol 0.01 in at most 50"),
                    columns.solved("rtol 0.01", "nfe_forward", "nfe of that"),
                    *_COSTS,
                )
            ),
        ),
    ),
)
