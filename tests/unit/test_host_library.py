"""Contexts of libusb: each new one looks at all devices anew, over one library that is loaded once."""

import gc
from collections.abc import Iterator

import pytest
import usb.backend.libusb1 as pyusb

from common.errors import Refused
from host.usb import library


@pytest.fixture(autouse=True)
def _one_library() -> Iterator[None]:
    if library.PATH is None:
        pytest.skip("no libusb here")
    yield
    gc.collect()


def test_each_context_is_another() -> None:
    first, second = library.fresh_backend(), library.fresh_backend()
    assert first is not second and first.ctx.value != second.ctx.value


def test_a_first_context_is_not_kept_for_ever() -> None:
    library.fresh_backend()
    assert pyusb._lib_object is None


def test_no_object_ever_ends_through_a_library_whose_functions_are_not_declared_yet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Seen as a segfault: garbage was collected while pyusb declared the functions of a library it loaded again."""
    library.fresh_backend()
    monkeypatch.setattr(pyusb, "_setup_prototypes", lambda lib: pytest.fail("what is held now could end just then"))
    library.fresh_backend()


def test_no_context_is_a_refusal_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    library.fresh_backend()

    def refuse(_lib: object) -> None:
        raise pyusb.USBError("Resource temporarily unavailable", -11)

    monkeypatch.setattr(pyusb, "_LibUSB", refuse)
    with pytest.raises(Refused, match=r"no new context: .*Resource temporarily unavailable"):
        library.fresh_backend()
