"""The studies of `anaphora bench`: one file each, in the order in which they run and are reported."""

from typing import Final

from benchmarks.studies import (
    comprehensive,
    inspect,
    load,
    manager,
    memory,
    ordering,
    peers,
    scaling,
    sensitivity,
    use_cases,
    weather,
)
from benchmarks.study import Study

STUDIES: Final[dict[str, Study]] = {
    module.STUDY.name: module.STUDY
    for module in (
        inspect,
        weather,
        ordering,
        scaling,
        use_cases,
        memory,
        manager,
        sensitivity,
        comprehensive,
        load,
        peers,
    )
}
