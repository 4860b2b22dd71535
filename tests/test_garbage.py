"""The garbage collector during imports."""

import gc

import pytest

from fastac.garbage import collected_later


def test_nothing_is_collected_in_the_block_and_the_setting_comes_back():
    with pytest.raises(KeyError), collected_later():
        assert not gc.isenabled()
        raise KeyError
    assert gc.isenabled()
    gc.disable()
    try:
        with collected_later():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
