"""Personal data and secrets are masked, lookalikes are kept. All values are invented."""

import pyarrow as pa
import pytest

from qwen_jax.corpus.filters.pii import NAMES, PATTERNS, PersonalStage, mask

AWS = "AKIA" + "IOSFODNN7EXAMPLE"  # split, because secret scanners look for such strings
GITHUB = "ghp_" + "a1B2c3D4e5F6g7H8i9J0" * 2
JWT = ".".join(["eyJ" + "hbGciOiJIUzI1NiJ9", "eyJ" + "zdWIiOiIxMjM0In0", "dozjgNryP4J3jVmNHl0w5N"])
KEY = "-----BEGIN RSA PRIVATE " + "KEY-----\nMIIEow\nIBAAK\n-----END RSA PRIVATE " + "KEY-----"

MASKED = [  # text, masked text, name of the pattern
    ("Mail li.lei+news@mail.qq.com!", "Mail <email>!", "email"),
    ("邮箱：wang@163.com。", "邮箱：<email>。", "email"),
    ("from 8.8.4.4, twice", "from <ip>, twice", "ipv4"),
    ("at 93.184.216.34.", "at <ip>.", "ipv4"),
    ("to 2606:4700:4700::1111 now", "to <ip> now", "ipv6"),
    ("to 2001:4860:4860:0:0:0:0:8888", "to <ip>", "ipv6"),
    ("电话13912345678。", "电话<phone>。", "phone"),
    ("call +86 139 1234 5678", "call <phone>", "phone"),
    ("call +44 20 7946 0958 now", "call <phone> now", "phone"),
    ("call 780-555-7092 or 1-780-555-7093", "call <phone> or 1-<phone>", "phone"),
    ("call (780) 555-7092", "call <phone>", "phone"),
    ("座机 010-62345678", "座机 <phone>", "phone"),
    ("身份证11010519491231002X。", "身份证<id_number>。", "id_number"),
    (f"key {AWS} end", "key <aws_key> end", "aws_key"),
    (f"use {GITHUB}", "use <github_token>", "github_token"),
    (f"Bearer {JWT}", "Bearer <jwt>", "jwt"),
    (f"a\n{KEY}\nb", "a\n<private_key>\nb", "private_key"),
    ("api_key = 'a8F3kQ92mZ7pX1'", "api_key = '<assigned_secret>'", "assigned_secret"),
    ('{"password": "p4ssW9rd!x2K"}', '{"password": "<assigned_secret>"}', "assigned_secret"),
    ("postgres://bob:hunter22@db/x", "postgres://bob:<password_in_url>@db/x", "password_in_url"),
    ("sk-" + "proj4Abc9Def8Ghi7Jkl6Mno", "<service_key>", "service_key"),
]


def test_patterns_jwt_matches_only_at_the_start_of_a_run():
    """Matching at every `eyJ` of a run would take quadratic time."""
    (pattern,) = (pattern for pattern in PATTERNS if pattern.name == "jwt")
    run = "eyJ" * 20
    text = f"{run}.{run}.{run}"
    assert mask(text) == ("<jwt>", {"jwt": 1})
    assert pattern.expression.match(text) and not pattern.expression.match(text, 3)


@pytest.mark.parametrize("text, masked, name", MASKED, ids=[str(i) for i in range(len(MASKED))])
def test_mask_replaces_personal_data_and_secrets(text, masked, name):
    found, counts = mask(text)
    assert found == masked and set(counts) == {name}
    assert mask(found) == (found, {})


@pytest.mark.parametrize(
    "text",
    [
        "version 1.2.3.4",
        "v1.2.3.4",
        "firmware: 10.1.2.3",
        "package-1.22.3.4",
        "Section 8.2.4.44",
        "版本 2.13.4.5 发布",
        "127.0.0.1 and 192.168.1.20 and 10.0.0.7",
        "1.2.3.4.5",
        "300.1.2.3",
        "1.0.0.127.in-addr.arpa",
        "8.0.0.0/8",
        "std::vector<int>",
        "ab::cd::ef",
        "12:34:56 2001:12",
        "user@example.com",
        "icon@2x.png",
        "@decorator",
        "a @ b.c",
        "3.13912345678",
        "239123456789",
        "13912345678901",
        "1391234-5678",
        "+12 apples",
        "+35236450.6",
        "110105194912310021",
        "11010519491331002X",  # a wrong check digit, a 13th month
        "password = your_password_here",
        "token: Optional[str] = None",
        "api_key = os.environ['KEY']",
        "secret = hashlib.sha256(value)",
        "the key is under the mat",
        "http://host:8080/path",
        "在1995-2003年间",
        "ISBN 978-7-5399-2345-6",
        "1+1=2",
        "10-20-30",
    ],
    ids=range(36),
)
def test_mask_keeps_lookalikes(text):
    assert mask(text) == (text, {})


def test_mask_counts_every_match():
    text, counts = mask("a@b.com b@c.org 8.8.8.8 " + "x " * 1000 + "c@d.net")
    assert counts == {"email": 3, "ipv4": 1} and text.count("<email>") == 3


def test_personal_stage_masks_and_counts():
    table = pa.table({"text": pa.array(["a@b.com, 8.8.8.8", "nothing"], pa.large_string())})
    masked = PersonalStage()(table)
    assert masked["text"].to_pylist() == ["<email>, <ip>", "nothing"]
    assert masked.schema.field("text").type == pa.large_string()
    assert masked["masked_email"].to_pylist() == [1, 0]
    assert (
        set(PersonalStage.counted)
        == {f"masked_{name}" for name in NAMES}
        <= set(masked.column_names)
    )
