"""Personal data in texts: e-mail addresses, phone numbers, payment cards, IBANs and IP addresses.

Only kinds are ever returned, never what was found. Names and postal addresses are not found, and reserved values are
passed over (``example.com``, private IP addresses), as they are nobody's.
"""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from collections.abc import Sequence
from typing import Literal, get_args

PersonalKind = Literal["email", "phone", "card", "iban", "ip"]
PERSONAL_KINDS: tuple[PersonalKind, ...] = get_args(PersonalKind)

_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@((?:[\w-]{1,63}\.)+[^\W\d_]{2,24})(?![\w-])")
# RFC 2606
_RESERVED_DOMAIN = re.compile(r"(?:^|\.)(?:example(?:\.(?:com|net|org))?|test|invalid|localhost)$", re.IGNORECASE)
# ISO/IEC 7812: the issuers' first digits; 13 to 19 digits in one run, or in the groups that stand on cards
_CARD = re.compile(
    r"(?<![\w.,-])(?<!\d )(?:[2-6]\d{12,18}"
    r"|[2-6]\d{3}([ -])\d{4}\1\d{4}\1\d{1,4}(?:\1\d{1,3})?|3[47]\d\d([ -])\d{6}\2\d{5})(?![\w-]| \d)"
)
# looked ahead for, as what stands before it may look like a beginning too
_IBAN = re.compile(r"(?<![^\W_])(?=([A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}))", re.IGNORECASE)
_IPV4 = re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?!\.?\w)")
_IPV6 = re.compile(r"(?<![\w:])[0-9a-f]{0,4}(?::[0-9a-f]{0,4}){2,7}(?![\w:])", re.IGNORECASE)
_PHONE_LIKE = re.compile(r"\d(?:[ ()./\u2010-\u2015-]{0,3}\d){6}")
# SWIFT, IBAN registry, release 99: country and length
_IBAN_LENGTHS = {
    country: int(length)
    for country, length in re.findall(
        r"([A-Z]{2})(\d{2})",
        "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DK18 DO28 EE20 EG29 ES24 FI18"
        " FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32 LI21 LT20"
        " LU20 LV21 LY25 MC27 MD24 ME22 MK19 MR27 MT31 MU30 NL18 NO15 PK24 PL28 PS29 PT25 QA29 RO24 RS22 SA24 SC31 SE24"
        " SI19 SK24 SM27 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20",
    )
}


def personal_kinds(text: str, *, phone_regions: Sequence[str] = ()) -> frozenset[PersonalKind]:
    """Return the kinds of personal data that a text holds.

    Args:
        text: Any text.
        phone_regions: Countries (``"US"``, ``"DE"``) whose national numbers count; numbers with ``+`` always do.

    Example:
        >>> sorted(personal_kinds("Write to jane.doe@mail.org or call +44 20 7946 0958."))
        ['email', 'phone']
        >>> personal_kinds("Order 4111 1111 1111 1112 is late")
        frozenset()
    """
    folded = unicodedata.normalize("NFKC", text)
    found: set[PersonalKind] = set()
    if any(not _RESERVED_DOMAIN.search(domain) for domain in _EMAIL.findall(folded)):
        found.add("email")
    if any(_is_public(match) for pattern in (_IPV4, _IPV6) for match in pattern.findall(folded)):
        found.add("ip")
    ibans = [match for match in _IBAN.findall(folded) if _is_iban(match)]
    if ibans:
        found.add("iban")
    cards = [match[0] for match in _CARD.finditer(folded) if _is_card(match[0])]
    if cards:
        found.add("card")
    for taken in (*ibans, *cards):
        folded = folded.replace(taken, " ")  # a part of them may look like a phone number
    if _has_phone(folded, phone_regions):
        found.add("phone")
    return frozenset(found)


def _is_card(candidate: str) -> bool:
    """Check the last digit by Luhn's rule (ISO/IEC 7812-1, annex B)."""
    digits = [int(sign) for sign in candidate if sign.isdigit()]
    doubled = sum(sum(divmod(2 * digit, 10)) for digit in digits[-2::-2])
    return len(set(digits)) > 1 and (sum(digits[-1::-2]) + doubled) % 10 == 0


def _is_iban(candidate: str) -> bool:
    """Check length by country, and the check digits (ISO 13616, modulo 97); what follows may be the next word."""
    signs = candidate.replace(" ", "").upper()
    iban = signs[: _IBAN_LENGTHS.get(signs[:2], 0)]
    if not iban or len(iban) < _IBAN_LENGTHS[signs[:2]]:
        return False
    return int("".join(str(int(sign, 36)) for sign in iban[4:] + iban[:4])) % 97 == 1


def _is_public(candidate: str) -> bool:
    try:
        return ipaddress.ip_address(candidate).is_global
    except ValueError:
        return False


def _has_phone(text: str, regions: Sequence[str]) -> bool:
    if not _PHONE_LIKE.search(text):
        return False
    # takes a moment to import, and most texts have no digits
    from phonenumbers import Leniency, PhoneNumberMatcher

    if PhoneNumberMatcher(text, None, Leniency.VALID).has_next():
        return True
    # a national number is told from any other number only by the groups that it is written in
    return any(
        _PHONE_LIKE.search(match.raw_string) and not match.raw_string.isdigit()
        for region in regions
        for match in PhoneNumberMatcher(text, region, Leniency.STRICT_GROUPING)
    )
