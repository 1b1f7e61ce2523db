"""How a source is written: every form, nesting without quoting, and one line for each mistake."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import Refused
from host.source.spec import OPTIONS, WRAPPERS, Scheme, Spec, parse


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("/a b?c&over=%41", Spec(Scheme.FILE, "/a b?c&over=%41")),
        ("file:/a%3Fb?ro", Spec(Scheme.FILE, "/a?b", (("ro", ""),))),
        ("https://h:1/a%20b?x=1&over=2", Spec(Scheme.HTTPS, "https://h:1/a%20b?x=1&over=2")),
        ("fsspec:s3://b/a%20b?x=1&over=2", Spec(Scheme.FSSPEC, "s3://b/a%20b?x=1&over=2")),
        ("random:7?size=64M", Spec(Scheme.RANDOM, "7", (("size", "64M"),))),
    ],
)
def test_forms_of_a_source(text: str, spec: Spec) -> None:
    assert parse(text) == spec
    assert spec.text == text


def test_everything_behind_over_is_the_inner_source_as_it_would_be_written_alone() -> None:
    inner = "overlay:/m%26ap?over=https://h/a?over=/x&error=1"
    spec = parse("fault:/s?error=EIO&ops=read,write&over=" + inner)
    assert (spec.body, spec.option("error"), spec.option("ops")) == ("/s", "EIO", "read,write")
    assert spec.over == parse(inner)
    assert spec.over.body == "/m&ap"
    assert spec.over.over == Spec(Scheme.HTTPS, "https://h/a?over=/x&error=1")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "a source is empty: give the path"),
        ("ftp://x/y", "ftp://x/y: ftp: is not a kind of source here: use a path"),
        ("file:", "file:: nothing behind file:, give the path"),
        ("file:/a?rw", "file:/a\\?rw: 'rw' is not an option of file: use ro;"),
        ("file:/a?ro&ro", "file:/a\\?ro&ro: ro is given twice"),
        ("file:/a?over=/b", "file:/a\\?over=/b: file: lies over nothing"),
        ("file:/a%zz", "file:/a%zz: a % without two hexadecimal digits"),
        ("overlay:/m", "overlay:/m: a source is missing under it"),
        ("overlay:/m?over=", "a source is empty"),
        ("http:///x", "http:///x: not a URL"),
        ("http://h:99999/x", "http://h:99999/x: not a URL"),
        ("http://me:secret@h/x", "http://...@h: a password in a URL is seen by all"),
        ("fsspec:", "fsspec:: not a URL of a store: give fsspec:s3://BUCKET/KEY"),
        ("fsspec:bucket/key", "fsspec:bucket/key: not a URL of a store"),
        ("fsspec:blockcache::s3://a/b", "fsspec:blockcache::s3://a/b: a chain: its caches would mix versions"),
        ("fsspec:s3://a b", "fsspec:s3://a b: not a URL of a store"),
        ("fsspec:sftp://me:secret@h/x", "fsspec:sftp://...: a password in a URL is seen by all"),
        ("/a\0b", "'/a.*has a NUL in it"),
        ("fault:/s?over=" * 9 + "/a", "/a: more than 8 sources inside each other"),
    ],
)
def test_mistakes_are_one_line_that_says_what_to_do(text: str, why: str) -> None:
    with pytest.raises(Refused, match=f"^{why}"):
        parse(text)


_BODY = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1)
_LEAF = st.builds(
    Spec, st.just(Scheme.FILE), _BODY.map(lambda t: "/" + t), st.sampled_from([(), (("ro", ""),)])
) | st.builds(Spec, st.just(Scheme.RANDOM), _BODY, _BODY.map(lambda t: (("size", t),)))


def _wrap(inner: "st.SearchStrategy[Spec]") -> "st.SearchStrategy[Spec]":
    options = st.sampled_from([(), (("error", "EIO"),), (("delay_ms", "5"), ("torn", ""))])
    faults = st.builds(Spec, st.just(Scheme.FAULT), _BODY, options, inner)
    return faults | st.builds(Spec, st.just(Scheme.OVERLAY), _BODY, st.just(()), inner)


@given(st.recursive(_LEAF, _wrap, max_leaves=4))
def test_the_canonical_text_of_any_source_means_that_source(spec: Spec) -> None:
    assert parse(spec.text) == spec


@given(st.text() | st.from_regex(r"(file|random|overlay|fault|fsspec|https?):[%?&=/a-z]*", fullmatch=True))
def test_any_text_is_a_source_or_one_error(text: str) -> None:
    try:
        assert parse(parse(text).text) == parse(text)
    except Refused as error:
        assert str(error)


def test_every_scheme_has_its_options() -> None:
    assert set(OPTIONS) == set(Scheme) and set(WRAPPERS) <= set(Scheme)
