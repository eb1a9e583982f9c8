"""Names that a folder may have, and that a URL, glob, list or shell would interpret."""

PRINTABLE = "".join(map(chr, range(32, 127))).replace("/", "")
ALL_CHARACTERS = PRINTABLE  # one name with every printable ASCII character; it starts with a space
LONG = "n" * 200
CHINESE = "实验 第一次"
# Each character inside a name and as a name; the names that are folders of their own are left out.
EACH_CHARACTER = [name for c in PRINTABLE for name in (f"a{c}b", c) if name != "."]
MORE = [
    CHINESE,
    LONG,
    "-x",
    "--run_dir=x",
    "x ",
    "$HOME",
    "%41",
    "a%2Fb",
    "lr=0.5",
    "[1]",
    "[!a]",
    "{a,b}",
    "**",
    "s3:",
    "file:",
    "{0}",
    "%s",
    "a\tb",
    "a\nb",
    "...",
    "é",
    "e\u0301",
    "🙂",
]
