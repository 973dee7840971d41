"""Wording of generated schemas: from the noun of a concept to all forms and predicates that the
templates of a lexicon (lexicon/LANG.toml) need. The predicates are generic: "have a price above 5".

A noun is a dictionary of its parts (concepts.py: PARTS). Each language has three functions:

- ``table(noun, person)``: the forms of a table's noun
- ``column(noun, role)``: the forms of a column's noun and its predicates; ``role`` is name,
  category, number, year (a number that is a year) or date
- ``reference(parent)``: the predicates of a foreign key to a table with these forms
"""

import re
from collections.abc import Callable

Forms = dict[str, str | dict[str, str]]


def english(section: str, noun: dict[str, str], kind: str | bool = "") -> Forms:
    sg, pl = noun["sg"], noun["pl"]
    if section == "table":
        return {"sg": sg, "pl": pl, "rel": "who" if kind else "that"}
    vowel = sg[0] in "aeiouAEIOU" and not sg.startswith(("uni", "use", "usa", "one", "eu"))
    vowel = vowel or sg.startswith(("hour", "X-ray", "ID", "MRI", "SMS"))
    a = f"{'an' if vowel else 'a'} {sg}"
    forms: Forms = {"sg": sg, "pl": pl, "eq": f"have the {sg} {{v}}", "null": f"have no {sg}"}
    if kind in ("date", "year"):
        forms |= {"gt": f"have {a} after {{v}}", "lt": f"have {a} before {{v}}"}
        forms |= {"max": f"with the latest {sg}", "min": f"with the earliest {sg}"}
    else:
        forms |= {"gt": f"have {a} above {{v}}", "lt": f"have {a} below {{v}}"}
        forms |= {"max": f"with the highest {sg}", "min": f"with the lowest {sg}"}
    least = "{v} or later" if kind == "year" else "at least {v}"
    return forms | {
        "ge": f"have {a} of {least}",
        "between": f"have {a} between {{v}} and {{w}}",
    }


def english_reference(parent: Forms) -> Forms:
    link = f"belong to {parent['pl']} {parent['rel']} {{a}}"
    return {"by": f"belong to the {parent['sg']} {{v}}", "link": link}


# Endings by gender: der, den, er, en, em, es, n; the indefinite accusative; the dative article.
GERMAN = {
    "m": ("der", "den", "er", "en", "em", "es", "n", "einen", "dem"),
    "f": ("die", "die", "e", "e", "er", "er", "", "eine", "der"),
    "n": ("das", "das", "es", "es", "em", "es", "", "ein", "dem"),
}


def german(section: str, noun: dict[str, str], kind: str | bool = "") -> Forms:
    sg, pl, gender = noun["sg"], noun["pl"], noun["gender"]
    oblique = noun.get("obl", sg)
    *endings, a, the = GERMAN[gender]
    forms: Forms = dict(zip(("der", "den", "er", "en", "em", "es", "n"), endings))
    forms |= {"sg": sg, "akk": oblique, "dat": oblique, "gen": noun["gen"], "pl": pl}
    head, _, rest = pl.partition(" ")  # "Preise pro Nacht": the first word is inflected
    head = head if head[-1] in "ns" else head + "n"
    forms["pl_dat"] = f"{head} {rest}" if rest else head
    if section == "table":
        return forms | {"sein": "ihr" if gender == "f" else "sein"}
    number = kind == "number"
    forms["ist"], forms["sind"] = (
        ("wie hoch ist", "wie hoch sind") if number else ("wie lautet", "wie lauten")
    )
    time = kind in ("date", "year")
    sup, inf = ("späteste", "früheste") if time else ("höchste", "niedrigste")
    on = "dem " if kind == "date" else ""
    over, under = ("nach", "vor") if time else ("über", "unter")
    least = "ab" if kind == "year" else "von mindestens"
    return forms | {
        "sup": sup,
        "inf": inf,
        "eq": f"{forms['den']} {oblique} {{v}} haben",
        "null": f"k{a} {oblique} haben",
        "gt": f"{a} {oblique} {over} {on}{{v}} haben",
        "ge": f"{a} {oblique} {least} {{v}} haben",
        "lt": f"{a} {oblique} {under} {on}{{v}} haben",
        "between": f"{a} {oblique} zwischen {on}{{v}} und {on}{{w}} haben",
        "max": f"mit {the} {sup}n {oblique}",
        "min": f"mit {the} {inf}n {oblique}",
    }


def german_reference(parent: Forms) -> Forms:
    to = "zur" if parent["der"] == "die" else "zum"
    return {
        "by": f"{to} {parent['dat']} „{{v}}“ gehören",
        "link": f"zu {parent['pl_dat']} gehören, die {{a}},",
    }


# By gender: el, los, del, o, ningun, un.
SPANISH = {
    "m": ("el", "los", "del", "o", "ningún", "un"),
    "f": ("la", "las", "de la", "a", "ninguna", "una"),
    "f el": ("el", "las", "del", "a", "ningún", "un"),
}


def spanish(section: str, noun: dict[str, str], kind: str | bool = "") -> Forms:
    sg = noun["sg"]
    el, los, of_the, o, none, a = SPANISH[noun["gender"]]
    forms: Forms = {"sg": sg, "pl": noun["pl"], "el": el, "los": los, "del": of_the, "o": o}
    if section == "table":
        return forms | {"ningun": none}
    head, _, rest = sg.partition(" ")
    forms |= {"n": head, "de": f" {rest}" if rest else "", "un": a}
    forms |= {"eq": f"tienen {el} {sg} {{v}}", "null": f"no tienen {sg}"}
    forms |= spanish_times(o) if kind in ("date", "year") else spanish_numbers(o)
    above, below, on = forms["superior"], forms["inferior"], "el " if kind == "date" else ""
    to = "al" if kind == "date" else "a"
    least = "igual o posterior a" if kind == "year" else "de al menos"
    return forms | {
        "gt": f"tienen {a} {sg} {above} {to} {{v}}",
        "ge": f"tienen {a} {sg} {least} {{v}}",
        "lt": f"tienen {a} {sg} {below} {to} {{v}}",
        "between": f"tienen {a} {sg} entre {on}{{v}} y {on}{{w}}",
        "max": f"con {el} {sg} {forms['alto']}",
        "min": f"con {el} {sg} {forms['bajo']}",
    }


def spanish_numbers(o: str) -> Forms:
    return {
        **{"mayor": "mayor", "menor": "menor", "alto": f"más alt{o}", "bajo": f"más baj{o}"},
        **{"superior": "superior", "inferior": "inferior"},
        **{"desc": "de mayor a menor", "asc": "de menor a mayor"},
    }


def spanish_times(o: str) -> Forms:
    late, early = "más reciente", f"más antigu{o}"
    start, end = ("de la", "a la") if o == "a" else ("del", "al")
    return {
        **{"mayor": f"últim{o}", "menor": "primera" if o == "a" else "primer"},
        **{"alto": late, "bajo": early, "superior": "posterior", "inferior": "anterior"},
        **{"desc": f"{start} {late} {end} {early}", "asc": f"{start} {early} {end} {late}"},
    }


def spanish_reference(parent: Forms) -> Forms:
    to = "al" if parent["el"] == "el" else "a la"
    return {
        "by": f"pertenecen {to} {parent['sg']} {{v}}",
        "link": f"pertenecen a {parent['pl']} que {{a}}",
    }


def french(section: str, noun: dict[str, str], kind: str | bool = "") -> Forms:
    sg, pl = noun["sg"], noun["pl"]
    feminine, aspirated = noun["gender"][0] == "f", noun["gender"].endswith("h")
    elided = sg[0].lower() in "aeiouyâàéèêëîïôœûh" and not aspirated
    e = "e" if feminine else ""
    the = "l'" if elided else "la " if feminine else "le "
    forms: Forms = {
        **{"sg": sg, "pl": pl, "le": the, "quel": "quelle" if feminine else "quel", "e": e},
        "du": f"de {the}" if elided or feminine else "du ",
        "de": "d'" if elided else "de ",
    }
    its = "sa" if feminine and not elided else "son"
    if section == "table":
        all_those = ("toutes", "celles") if feminine else ("tous", "ceux")
        return forms | {"tous": all_those[0], "ceux": all_those[1], "son": its}
    # "prix moyen" is not split: "prix moyen maximal". No adjective goes into a year's noun.
    head, average, rest = re.fullmatch(r"(\S+)( moyen(?:ne)?)?(.*)", sg).groups(default="")
    n, complement = (sg, "") if kind == "year" else (head + average, rest)
    extremes, above, below = french_degrees(e, str(kind))
    a, on = "une" if feminine else "un", "le " if kind == "date" else ""
    least = f"égal{e} ou postérieur{e} à" if kind == "year" else "d'au moins"
    return forms | {
        **{"n": n, "cpl": complement, "ne": "ne" if feminine else ""},
        **{"leur": f"leur {sg}", "son": f"{its} {sg}", **extremes},
        "eq": f"ont {the}{sg} {{v}}",
        "null": f"n'ont pas {forms['de']}{sg}",
        "gt": f"ont {a} {sg} {above} {{v}}",
        "ge": f"ont {a} {sg} {least} {{v}}",
        "lt": f"ont {a} {sg} {below} {{v}}",
        "between": f"ont {a} {sg} compris{e} entre {on}{{v}} et {on}{{w}}",
        "max": {key: f"avec {the}{sg} {extremes['haut']}" for key in ("base", "pl")},
        "min": {key: f"avec {the}{sg} {extremes['bas']}" for key in ("base", "pl")},
    }


def french_degrees(e: str, kind: str) -> tuple[Forms, str, str]:
    """The words for extreme values and those for above and below; ``e`` is the feminine ending."""
    article = "la" if e else "le"
    if kind in ("date", "year"):
        late, early = f"{article} plus récent{e}", f"{article} plus ancien{'ne' if e else ''}"
        forms: Forms = {"haut": late, "bas": early, "maxi": late, "mini": early}
        to = "au" if kind == "date" else "à"
        return forms, f"postérieur{e} {to}", f"antérieur{e} {to}"
    forms = {
        **{"haut": f"{article} plus élevé{e}", "bas": f"{article} plus bas{'se' if e else ''}"},
        **{"maxi": f"maximal{e}", "mini": f"minimal{e}"},
    }
    return forms, f"supérieur{e} à", f"inférieur{e} à"


def french_reference(parent: Forms) -> Forms:
    to = {"le ": "au ", "la ": "à la ", "l'": "à l'"}[str(parent["le"])]
    return {
        "by": f"appartiennent {to}{parent['sg']} {{v}}",
        "link": f"appartiennent à des {parent['pl']} qui {{a}}",
    }


def japanese(section: str, noun: dict[str, str], kind: str | bool = "") -> Forms:
    n = noun["n"]
    if section == "table":
        u = noun["counter"]
        exists = ("いる", "いない", "います") if kind else ("ある", "ない", "あります")
        return {
            **{"n": n, "u": u, "q": "いくつ" if u == "つ" else f"何{u}", "cn": f"{u}の{n}"},
            **{"tail": u, "mo": f"1{u}も", "demo": f"1{u}でも", "ichi": f"1{u}"},
            **dict(zip(("iru", "nai", "masu"), exists)),
            **{
                "num": f"{n}の数",
                "one": "人" if kind else "もの",
                "which": "誰" if kind else "どれ",
            },
            **{"ref": n, "own": n, "onum": f"{n}の数"},
        }
    time, unit = kind in ("date", "year"), "年" if kind == "year" else ""
    high, low = ("新しい", "古い") if time else ("高い", "低い")
    ask = {"date": "いつ", "year": "何年", "number": "いくつ"}.get(str(kind), "何")
    v, w = f"{{v}}{unit}", f"{{w}}{unit}"

    def clauses(text: str) -> dict[str, str]:  # text stands before の
        return {"base": f"{n}が{text}の", "te": f"{n}が{text}で", "ka": f"{n}が{text}であるか"}

    def most(adjective: str) -> dict[str, str]:
        first, order = f"{n}が一番{adjective}", f"{n}が{adjective}順"
        return {"base": f"{n}が最も{adjective}", "ich": first, "jun": order}

    more = {"base": f"{n}が{{v}}を超える", "te": f"{n}が{{v}}を超え", "ka": f"{n}が{{v}}を超えるか"}
    return {
        **{"n": n, "s": n, "cnt": "いくつ", "hi": high, "lo": low, "avg": f"{n}の平均"},
        "q": ask,
        "eq": clauses(v),
        "null": clauses("未登録"),
        "gt": clauses(f"{v}より後") if time else more,
        "ge": clauses(f"{v}以降" if unit else f"{v}以上"),
        "lt": clauses(f"{v}より前" if time else f"{v}未満"),
        "between": clauses(f"{v}から{w}まで" if time else f"{v}以上{w}以下"),
        "max": most(high),
        "min": most(low),
    }


def japanese_reference(parent: Forms) -> Forms:
    n = parent["n"]
    ends = {"base": "に属する", "te": "に属し", "ka": "に属するか"}
    return {
        "by": {key: f"{n}「{{v}}」{end}" for key, end in ends.items()},
        "link": {key: f"{{a}}{n}{end}" for key, end in ends.items()},
    }


def vietnamese(section: str, noun: dict[str, str], kind: str | bool = "") -> Forms:
    n = noun["n"]
    if section == "table":
        classifier = noun["sg"].removesuffix(n).strip()
        return {"n": n, "sg": noun["sg"], "one": classifier or ("người" if kind else n)}
    ask = {"number": "là bao nhiêu", "year": "là năm nào", "date": "là ngày nào"}
    q = ask.get(str(kind), "là gì")
    unit = {"year": "năm ", "date": "ngày "}.get(str(kind), "")
    up, down = ("muộn", "sớm") if unit else ("cao", "thấp")
    over, under = ("sau", "trước") if unit else ("lớn hơn", "nhỏ hơn")
    onwards = "trở đi" if kind == "year" else "trở lên"
    return {
        **{"n": n, "np": n, "vp": "có", "ask": f"có {n} {q}", "q": q, "up": up, "down": down},
        "eq": f"có {n} là {{v}}",
        "null": f"chưa có thông tin về {n}",
        "gt": f"có {n} {over} {unit}{{v}}",
        "ge": f"có {n} từ {unit}{{v}} {onwards}",
        "lt": f"có {n} {under} {unit}{{v}}",
        "between": f"có {n} từ {unit}{{v}} đến {unit}{{w}}",
        "max": f"có {n} {up} nhất",
        "min": f"có {n} {down} nhất",
    }


def vietnamese_reference(parent: Forms) -> Forms:
    return {"by": f"thuộc {parent['n']} {{v}}", "link": f"thuộc {parent['sg']} {{a}}"}


def chinese(section: str, noun: dict[str, str], kind: str | bool = "") -> Forms:
    n, m = noun["n"], noun["m"]
    if section == "table":
        return {
            **{"n": n, "m": m, "c": f"{m}{n}", "num": f"{n}数量", "ref": n, "own": n},
            **{"of": f"的{n}", "has": "有", "no": "没有"},
        }
    time, unit = kind in ("date", "year"), "年" if kind == "year" else ""
    high, low = ("晚", "早") if time else ("高", "低")
    above, below = ("晚于", "早于") if time else ("大于", "小于")
    least = "不早于" if time else "不小于"
    ask = {"number": "多少", "year": "哪一年", "date": "哪一天"}.get(str(kind), "什么")
    return {
        **{"n": n, "k": n, "m": m, "q": ask, "hi": high, "lo": low},
        "eq": f"{n}为{{v}}{unit}",
        "null": f"{n}未知",
        "gt": f"{n}{above}{{v}}{unit}",
        "ge": f"{n}{least}{{v}}{unit}",
        "lt": f"{n}{below}{{v}}{unit}",
        "between": f"{n}在{{v}}{unit}到{{w}}{unit}之间",
        "max": f"{n}最{high}",
        "min": f"{n}最{low}",
    }


def chinese_reference(parent: Forms) -> Forms:
    return {"by": f"属于{parent['n']}{{v}}", "link": f"属于{{a}}的{parent['n']}"}


WORDING: dict[str, tuple[Callable[..., Forms], Callable[[Forms], Forms]]] = {
    "en": (english, english_reference),
    "de": (german, german_reference),
    "es": (spanish, spanish_reference),
    "fr": (french, french_reference),
    "ja": (japanese, japanese_reference),
    "vi": (vietnamese, vietnamese_reference),
    "zh": (chinese, chinese_reference),
}
