"""The studies of `anaphora bench`: one file each, in the order in which they run and are reported."""

from typing import Final

from benchmarks.studies import ordering, scaling, weather
from benchmarks.study import Study

STUDIES: Final[dict[str, Study]] = {study.name: study for study in (weather.STUDY, ordering.STUDY, scaling.STUDY)}
