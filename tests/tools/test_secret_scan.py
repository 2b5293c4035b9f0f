"""The secret scan: credentials are found and masked, ordinary text is left alone."""

from __future__ import annotations

import base64
import json
import random

import pytest

from tools.secret_scan import find_secrets

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


def noise(n: int, alphabet: str = LETTERS) -> str:
    """The same n random characters every time; no credential stands in this file."""
    source = random.Random(n)
    return "".join(source.choice(alphabet) for _ in range(n - 1)) + "7"


SECRETS = {
    "Anthropic API key": "sk-" + "ant-api03-" + noise(40),
    "API key": "sk-" + "proj-" + noise(40),
    "AWS access key": "AK" + "IA" + noise(16, "ABCDEFGHIJ234567"),
    "GitHub token": "gh" + "p_" + noise(36),
    "GitLab token": "glp" + "at-" + noise(20),
    "Hugging Face token": "h" + "f_" + noise(34),
    "Slack token": "xo" + "xb-" + noise(30),
    "Google API key": "AI" + "za" + noise(35),
    "JSON web token": "ey" + "J" + noise(20) + ".ey" + "J" + noise(30) + "." + noise(40),
}


@pytest.mark.parametrize(("kind", "key"), SECRETS.items())
@pytest.mark.parametrize(
    "text",
    ["{}", "key = '{}'", "export X={}\n", '{{"a": "see\\n{}\\n"}}', "(https://x.org/?k={}&b=1)", "{}."],
)
def test_known_keys_are_found_wherever_they_stand(kind: str, key: str, text: str) -> None:
    (found,) = find_secrets(text.format(key))
    assert found.kind == kind
    assert key not in str(found)
    assert key[8:] not in str(found)


@pytest.mark.parametrize(
    "text",
    [
        f"HUB_TOKEN={noise(24)}",
        f'"service_key": "{noise(32)}"',
        f"db.password: {noise(14)}",
        f"client_secret = '{noise(20)}'",
        f"SIGNING-KEY: {noise(40, '0123456789abcdef')}",
        json.dumps({"text": json.dumps({"api_key": noise(24)})}),
    ],
)
def test_random_values_of_secret_names_are_found(text: str) -> None:
    (found,) = find_secrets(text)
    assert found.kind.startswith("value of ")
    assert found.masked.endswith("characters)")


def test_passwords_in_urls_and_private_keys_are_found() -> None:
    url = "git clone https://me:" + noise(12) + "@example.org/x.git"
    assert [found.kind for found in find_secrets(url)] == ["password in a URL"]
    pem = "-----BEGIN " + "OPENSSH PRIVATE KEY-----\n" + noise(64)
    assert [(found.line, found.kind) for found in find_secrets("a\n" + pem)] == [(2, "private key")]


def test_the_line_is_named_also_in_binary_and_utf_16() -> None:
    key = SECRETS["GitHub token"]
    assert find_secrets(b"\x89PNG\n\xff\xfe\x00\n\x00" + key.encode())[0].line == 3
    assert find_secrets(f"a\n{key}".encode("utf-16"))[0].line == 2


@pytest.mark.parametrize(
    "text",
    [
        "max_new_tokens: 64",
        'eos_token: "<|im_end|>"',
        '"pad_token": "<|endoftext|>", "bos_token_id": 151643',
        "recipe_digest: " + noise(64, "0123456789abcdef"),
        "cache_key: " + noise(64, "0123456789abcdef"),
        "public_key: " + noise(40),
        "metric_key: json_cmd_selection_2026_v2",
        "api_key: ${ANTHROPIC_API_KEY_2}",
        "api_key = os.environ['ANTHROPIC_API_KEY_2']",
        "the risk-based-approach-of-2026-was-chosen",
        "task-name: disk-usage-report-for-2026",
        "password: changeme",
        "A public key begins -----BEGIN PUBLIC KEY-----",
        "https://user:password@localhost/",
        "see https://example.org:8080/path@v2",
        "Recipe-Digest: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    ],
)
def test_ordinary_text_is_left_alone(text: str) -> None:
    assert find_secrets(text) == ()


def test_a_picture_inside_a_page_is_no_secret() -> None:
    for seed in range(20):
        data = base64.b64encode(random.Random(seed).randbytes(200_000)).decode()
        assert find_secrets(f'<img src="data:image/png;base64,{data}">') == ()
