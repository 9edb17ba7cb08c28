"""The formats of strings that a grammar can keep, as patterns: what satisfies them, if not in every spelling."""

from __future__ import annotations

_TWO_FOUR_SIX = "0[48]|[2468][048]|[13579][26]"
_YEAR = "([1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])"
_LEAP_YEAR = f"([0-9]{{2}}({_TWO_FOUR_SIX})|({_TWO_FOUR_SIX})00)"
_DATE = (
    f"({_YEAR}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))"
    f"|{_LEAP_YEAR}-02-29)"
)
_HOUR, _SIXTIETH = "([01][0-9]|2[0-3])", "[0-5][0-9]"
_TIME = f"{_HOUR}:{_SIXTIETH}:{_SIXTIETH}(\\.[0-9]{{1,6}})?(Z|[+-]{_HOUR}:{_SIXTIETH})"
_LABEL = "[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
_HOST = f"{_LABEL}(\\.{_LABEL}){{0,3}}"
_OCTET = "(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = f"{_OCTET}(\\.{_OCTET}){{3}}"
_WORD = "[a-zA-Z0-9!#$%&'*+/=?^_`{|}~-]+"
_PATH_CHARACTER = "([a-zA-Z0-9._~!$&'()*+,;=:@-]|%[0-9a-fA-F]{2})"
_REST = f"({_PATH_CHARACTER}|[/?])*"
_PATH = f"(/{_PATH_CHARACTER}*)*(\\?{_REST})?(#{_REST})?"
_COUNT = "[0-9]{1,4}"
_DAYS = f"({_COUNT}D|{_COUNT}M({_COUNT}D)?|{_COUNT}Y({_COUNT}M({_COUNT}D)?)?)"
_SECONDS = f"(T({_COUNT}S|{_COUNT}M({_COUNT}S)?|{_COUNT}H({_COUNT}M({_COUNT}S)?)?))"

FORMATS = {
    "date": f"^{_DATE}$",
    "time": f"^{_TIME}$",
    "date-time": f"^{_DATE}T{_TIME}$",
    "duration": f"^P({_DAYS}{_SECONDS}?|{_SECONDS}|{_COUNT}W)$",
    "uuid": "^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$",
    "email": f"^{_WORD}(\\.{_WORD})*@{_LABEL}(\\.{_LABEL}){{1,3}}$",
    "hostname": f"^{_HOST}$",
    "ipv4": f"^{_IPV4}$",
    "ipv6": "^([0-9a-fA-F]{1,4}:){7}[0-9a-fA-F]{1,4}$",
    "uri": f"^https?://{_HOST}(:[1-9][0-9]{{0,3}})?{_PATH}$",
}

# Of OpenAPI, for integers: from and to.
INTEGER_FORMATS = {"int32": (-(2**31), 2**31 - 1), "int64": (-(2**63), 2**63 - 1)}
# These only say how a value is to be stored or shown.
NO_DEMAND = ("float", "double", "password")
