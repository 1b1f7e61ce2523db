"""The page docs/reference/sources.md: how a source is written, from the tables that its parser uses."""

from host.source.spec import MEANINGS, OPTIONS, OVER, WRAPPERS, Scheme

_FORMS = {
    Scheme.FILE: "PATH, or file:PATH",
    Scheme.HTTP: "http://HOST[:PORT]/PATH",
    Scheme.HTTPS: "https://HOST[:PORT]/PATH",
    Scheme.FSSPEC: "fsspec:URL",
    Scheme.RANDOM: "random:SEED?size=SIZE",
    Scheme.OVERLAY: "overlay:MAP?over=SOURCE",
    Scheme.FAULT: "fault:SWITCH?OPTIONS&over=SOURCE",
}
_INTRODUCTION = """\
# Sources

What `replug host serve`, `host add` and the key `source` of a configuration file take. Made from the parser by
`python -m tools.docs`.

`NAME=SOURCE` gives it a name; else it has that of its file. A path that begins with `/` or `./`, or that is there, is
taken as it is. In all other forms the characters `%`, `?` and `&` of a path are written `%25`, `%3F` and `%26`. `over=`
is always the last option, and all behind it is the source under it, as it would be written alone.
"""


def sources() -> str:
    parts = [_INTRODUCTION, "| source | what it is |", "|---|---|"]
    parts += [f"| `{_FORMS[scheme]}` | {MEANINGS[scheme]} |" for scheme in Scheme]
    for scheme in Scheme:
        options = {**OPTIONS[scheme], **({"over": OVER} if scheme in WRAPPERS else {})}
        if options:
            parts += [f"\n## Options of `{scheme}:`\n", "| option | meaning |", "|---|---|"]
            parts += [f"| `{name}` | {text} |" for name, text in options.items()]
    return "\n".join(parts) + "\n"
