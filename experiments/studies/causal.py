"""What it costs that no output depends on what comes after it, and what leaks otherwise."""

from experiments import leak
from experiments.studies.stability_text import POST_NORM
from experiments.studies.study import Listing, Records, Study


def _rows(records: Records) -> list[dict[str, str]]:
    return [
        {"run": variant.label, **row}
        for variant, runs in records.items()
        for record in runs
        if "leak" in record.report
        for row in leak.shown(record.report["leak"])
    ]


CAUSAL = Study(
    name="causal",
    title="What a causal solve costs",
    about="""\
What a causal solve costs, and what leaks without it: how far log-probabilities before a place
move, in nats, when every byte after it is replaced by the next byte value
(`python -m experiments.leak --workdir DIR`).""",
    variants=(POST_NORM,),
    seeds=(0,),
    after=("leak",),
    tables=(Listing(rows=_rows),),
)
