"""The last dataset is kept while consecutive uses are of the same one."""

import gc
import weakref

import pytest

from optbench.data import Dataset, load
from optbench.data.loading import keeping_last
from optbench.data.settings import DatasetSettings
from optbench.kinds import Kind


def test_equal_settings_in_a_row_are_loaded_once_and_released_before_the_next() -> None:
    loads: list[Kind] = []
    released: list[weakref.ref[Dataset]] = []

    def logged(kind: Kind) -> Dataset:
        gc.collect()
        assert all(reference() is None for reference in released), "two datasets are in memory"
        loads.append(kind)
        found = load(kind)
        released.append(weakref.ref(found))
        return found

    once = keeping_last(logged)
    seven, fourteen = (DatasetSettings.of("mnist", resize=side) for side in (7, 14))
    sizes = [once(kind).train.inputs.shape[-1] for kind in (seven, DatasetSettings.of("mnist", resize=7), fourteen)]
    assert sizes == [7, 7, 14]
    assert loads == [seven, fourteen]
    assert once(seven) is once(seven)


def test_a_failed_load_is_not_kept() -> None:
    def failing(kind: Kind) -> Dataset:
        raise OSError("the disk is gone")

    once = keeping_last(failing)
    for _ in range(2):
        with pytest.raises(OSError, match="the disk is gone"):
            once(DatasetSettings.of("mnist"))
