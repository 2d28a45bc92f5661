import pytest

from sparsegate.data import personal_kinds

REGIONS = ("US", "GB")


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("mail x.y+z@corp.co.uk.", {"email"}),
        ("call (415) 555-2671 today", {"phone"}),
        ("+49 30 901820", {"phone"}),
        ("paid with 4111 1111 1111 1111", {"card"}),
        ("paid with 5500000000000004", {"card"}),
        ("amex 3782-822463-10005", {"card"}),
        ("IBAN DE89 3704 0044 0532 0130 00 into", {"iban"}),
        ("ref AB12 DE89 3704 0044 0532 0130 00", {"iban"}),
        ("gb82west12345698765432", {"iban"}),
        ("from 8.8.8.8", {"ip"}),
        ("from 2001:4860:4860::8888", {"ip"}),
        # full-width signs
        ("\uff14\uff11\uff11\uff11 1111 1111 1111", {"card"}),
        ("jane@mail.org, +44 20 7946 0958", {"email", "phone"}),
    ],
)
def test_each_kind_is_found(text, kinds):
    assert personal_kinds(text, phone_regions=REGIONS) == kinds


@pytest.mark.parametrize(
    "text",
    [
        "see user@example.com or user@host.test",
        "4111 1111 1111 1112",
        "0000 0000 0000 0000",
        "order 4155552671, 12345678 and 1680000",
        "DE89 3704 0044 0532 0130 01",
        "192.168.0.1 and 127.0.0.1 and ::1",
        "at 10:30:45, version 1.2.3",
        "2000000-400000",
        "12 + 34 = 46",
        "",
    ],
)
def test_reserved_values_and_other_numbers_are_nobody_s(text):
    assert personal_kinds(text, phone_regions=REGIONS) == set()


def test_national_phone_numbers_count_in_their_regions_only():
    assert personal_kinds("call (415) 555-2671") == set()
    assert personal_kinds("call (415) 555-2671", phone_regions=("DE", "US")) == {"phone"}


def test_long_texts_without_personal_data_are_read_in_linear_steps():
    # would not end within a test run if a pattern went back over what it has read
    for text in ("a" * 50_000, "a." * 25_000, "1 " * 25_000, ":" * 50_000, "DE89" * 12_000):
        personal_kinds(text, phone_regions=REGIONS)
