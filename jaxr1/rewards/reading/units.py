"""Units of measurement and currencies: one name for each, whatever way it is written.

Units are compared, never converted: "5 m" is not "500 cm".
"""

from __future__ import annotations

import functools
import re

Unit = tuple[tuple[str, int], ...]
"""((name, power), ...) in the order of the names; an empty one is a word for units as such."""

# One unit a line: its symbols, in which letter case counts, then its names, in which it does not.
_TABLE = """
m      : m 米 公尺 : meter metre
km     : km 千米 公里 : kilometer kilometre
cm     : cm 厘米 公分 : centimeter centimetre
dm     : dm 分米 : decimeter decimetre
mm     : mm 毫米 : millimeter millimetre
um     : um μm µm 微米 : micrometer micrometre micron
nm     : nm 纳米 : nanometer nanometre
in     : in in. " 英寸 : inch inches
ft     : ft ft. 英尺 : foot feet
yd     : yd 码 : yard
mi     : mi 英里 : mile
ly     : ly 光年 : light-year lightyear
g      : g 克 : gram gramme
kg     : kg 千克 公斤 : kilogram kilogramme kilo
mg     : mg 毫克 : milligram
ug     : ug μg µg 微克 : microgram
t      : t 吨 : tonne ton
lb     : lb lbs 磅 :
oz     : oz 盎司 : ounce
L      : L l 升 : liter litre
mL     : mL ml 毫升 : milliliter millilitre
gal    : gal 加仑 : gallon
ha     : ha 公顷 : hectare
acre   : 英亩 : acre
s      : s sec 秒 秒钟 : second sec
ms     : ms 毫秒 : millisecond
us     : us μs µs 微秒 : microsecond
ns     : ns : nanosecond
min    : min 分钟 : minute min
h      : h hr hrs 小时 时 个小时 个钟头 : hour hr
day    : d 天 : day
week   : wk 周 星期 : week
month  : mo 个月 : month
year   : yr yrs 年 岁 : year yr
Hz     : Hz 赫兹 赫 : hertz
kHz    : kHz 千赫 : kilohertz
MHz    : MHz : megahertz
GHz    : GHz : gigahertz
N      : N 牛 牛顿 : newton
kN     : kN 千牛 : kilonewton
J      : J 焦 焦耳 : joule
kJ     : kJ 千焦 : kilojoule
MJ     : MJ : megajoule
mJ     : mJ : millijoule
eV     : eV : electronvolt electron-volt
MeV    : MeV :
keV    : keV :
cal    : cal 卡 : calorie
kcal   : kcal 千卡 : kilocalorie
kWh    : kWh 千瓦时 度电 : kilowatt-hour
W      : W 瓦 瓦特 : watt
kW     : kW 千瓦 : kilowatt
MW     : MW 兆瓦 : megawatt
mW     : mW 毫瓦 : milliwatt
hp     : hp : horsepower
Pa     : Pa 帕 帕斯卡 : pascal
kPa    : kPa 千帕 : kilopascal
MPa    : MPa 兆帕 : megapascal
hPa    : hPa : hectopascal
atm    : atm : atmosphere
bar    : bar :
psi    : psi :
V      : V 伏 伏特 : volt
kV     : kV : kilovolt
mV     : mV : millivolt
A      : A 安 安培 : ampere amp
mA     : mA 毫安 : milliampere milliamp
C      : C 库仑 : coulomb
F      : F : farad
T      : T : tesla
H      : H : henry
ohm    : Ω \\Omega 欧 欧姆 : ohm
kohm   : kΩ k\\Omega : kiloohm kilohm
mol    : mol 摩尔 : mole
mmol   : mmol : millimole
M      : M : molar
K      : K 开 开尔文 : kelvin
°C     : °C 摄氏度 : celsius degrees-celsius degree-celsius
°F     : °F 华氏度 : fahrenheit degrees-fahrenheit degree-fahrenheit
°      : ° 度 : degree deg
rad    : rad 弧度 : radian
dB     : dB 分贝 : decibel
bit    : bit 比特 : bit
B      : 字节 : byte
kB     : kB KB : kilobyte
MB     : MB : megabyte
GB     : GB : gigabyte
TB     : TB : terabyte
mph    : mph MPH :
km/h   : kph kmh 千米每小时 公里每小时 :
rpm    : rpm :
dollar : $ US$ USD 美元 : dollar usd buck
cent   : ¢ c 美分 : cent
euro   : € EUR 欧元 : euro eur
gbp    : £ GBP 英镑 : gbp sterling
penny  : : penny pence pennies
yen?   : ¥ :
yen    : JPY 日元 : yen jpy
yuan   : CNY RMB 元 块 块钱 人民币 : yuan cny rmb renminbi
rupee  : ₹ INR 卢比 : rupee inr
won    : ₩ KRW 韩元 : won krw
franc  : CHF : franc chf
ruble  : ₽ RUB 卢布 : ruble rouble rub
peso   : MXN : peso mxn
pound  : : pound
unit   : : unit
"""
_ALIASES: dict[str, Unit] = {
    "mph": (("h", -1), ("mi", 1)),
    "km/h": (("h", -1), ("km", 1)),
    "unit": (),
}
_FORMS = {
    "sq": "square",
    "sq.": "square",
    "cu": "cubic",
    "cu.": "cubic",
    "平方": "square",
    "立方": "cubic",
}
_POWERS = {"square": 2, "cubic": 3, "squared": 2, "cubed": 3}
CURRENCY_SIGNS = "$€£¥₹₩₽¢"


def _tables() -> tuple[dict[str, str], dict[str, str]]:
    """{symbol: unit} and {name in lower case: unit}."""
    symbols: dict[str, str] = {}
    names: dict[str, str] = {}
    for line in _TABLE.strip().splitlines():
        unit, written, spelled = (part.strip() for part in line.split(" :"))
        symbols |= dict.fromkeys(written.split(), unit)
        for name in spelled.split():
            names |= {name: unit, f"{name}s": unit}
    return symbols, names


_SYMBOLS, _NAMES = _tables()
_HAN = sorted((name for name in _SYMBOLS if name >= "\u3000"), key=len, reverse=True)
_TOKEN = re.compile(
    r"\s*(?:(?P<han>平方|立方|每|" + "|".join(_HAN) + r")"
    r"|(?P<sign>[/*]|\\cdot|\\times|·|per\b|\^\s*\{?\s*(?P<power>[+-]?\d)\s*\}?)"
    r"|(?P<fraction>\\frac\s*\{\s*(?P<top>[A-Za-z]+)\s*\}\s*\{\s*(?P<bottom>[A-Za-z^\d]+)\s*\})"
    r"|(?P<name>°\s?[CF](?![a-z])|°|US\$|[$€£¥₹₩₽¢\"]|\\Omega"
    r"|[A-Za-zΩµμ]+(?:-[a-z]+)?\.?(?:\\Omega)?))"
)


_DEGREE = re.compile(r"(?i)\bdeg(?:rees?|\.)? (celsius|fahrenheit)")


def unit_named(name: str) -> Unit | None:
    """The unit of one symbol or name; None for any other word."""
    unit = _SYMBOLS.get(name) or _SYMBOLS.get(name.rstrip(".")) or _NAMES.get(name.lower())
    if unit is None and len(name) > 2 and name.endswith("s"):  # "kgs", "cms"
        unit = _SYMBOLS.get(name[:-1])
    if unit is None and len(name) >= 2:  # "KM", "Kg": letter case that is not another unit's
        unit = _SYMBOLS.get(name.lower()) if name.lower() in ("km", "kg", "cm", "mm") else None
    return None if unit is None else _ALIASES.get(unit, ((unit, 1),))


@functools.lru_cache(maxsize=4096)
def read_unit(text: str) -> Unit | None:
    """The unit that all of a text is: "km/h", "m s^{-2}", "square meters"; None for anything else.

    Units as such ("5 square units") are the empty unit.
    """
    tokens = _tokens(text)
    if not tokens:
        return None
    powers: dict[str, int] = {}
    sign, coming = 1, 1
    last: dict[str, int] = {}
    for kind, token in tokens:
        if kind == "sign" and token.startswith("^"):
            if not last:
                return None
            factor = int(re.sub(r"[^\d-]", "", token))
            last = _joined(powers, last, factor - 1)
        elif token in ("/", "per", "每"):
            sign = -1
            last = {}
        elif kind == "sign":
            last = {}
        elif (form := _FORMS.get(token.lower(), token.lower())) in ("square", "cubic"):
            coming = _POWERS[form]
        elif token.lower() in ("squared", "cubed"):
            if not last:
                return None
            last = _joined(powers, last, _POWERS[token.lower()] - 1)
        else:
            unit = unit_named(token)
            if unit is None:
                return None
            last = {name: sign * power * coming for name, power in unit}
            _joined(powers, last, 1)
            coming = 1
            if sign < 0:
                sign = 1
    if coming != 1 and not powers and tokens[-1][1].lower() not in ("unit", "units"):
        return None
    return tuple(sorted((name, power) for name, power in powers.items() if power))


def _joined(powers: dict[str, int], part: dict[str, int], times: int) -> dict[str, int]:
    """Multiplies a part into the powers; what it stands for with the power that follows it."""
    for name, power in part.items():
        powers[name] = powers.get(name, 0) + power * times
    return part


def _tokens(text: str) -> list[tuple[str, str]] | None:
    if len(text) > 40:
        return None
    # a name of two words is one
    text = _DEGREE.sub(lambda match: f"degree-{match.group(1).lower()}", text)
    found: list[tuple[str, str]] = []
    at = 0
    text = text.strip()
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            return None
        at = match.end()
        if match["fraction"]:
            bottom, _, power = match["bottom"].partition("^")
            found += [("name", match["top"]), ("sign", "/"), ("name", bottom)]
            found += [("sign", f"^{power}")] if power else []
        else:
            kind = match.lastgroup if match.lastgroup != "power" else "sign"
            found.append((kind or "", match.group().strip().replace("° ", "°")))
    return found


_EITHER = {"pound": ("lb", "gbp"), "yen?": ("yen", "yuan"), "C": ("C", "°C"), "F": ("F", "°F")}


def same_unit(one: Unit, other: Unit) -> bool:
    """Whether two units are one; "pound" and "¥" are what the other one says."""
    if one == other:
        return True
    for name, meanings in _EITHER.items():
        if name in dict(one + other):
            return any(_as(one, name, m) == _as(other, name, m) for m in meanings)
    return False


def _as(unit: Unit, name: str, meant: str) -> Unit:
    return tuple(sorted((meant if part == name else part, power) for part, power in unit))
