"""Wording of generated schemas: from the noun of a concept to all forms and predicates that the
templates of a lexicon (lexicon/LANG.toml) need. The predicates are generic: "have a price above 5".

A noun is a dictionary of its parts (concepts.py: PARTS). Each language has three functions:

- ``table(noun, person)``: the forms of a table's noun
- ``column(noun, role)``: the forms of a column's noun and its predicates; ``role`` is name,
  category, flag (a category whose values are yes and no), code, number, year (a number that is a
  year) or date
- ``reference(parent)``: the predicates of a foreign key to a table with these forms
"""

import re
from collections.abc import Callable

Forms = dict[str, str | dict[str, str]]


def words_for(noun: str, rules: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    """The words that the first rule (a pattern and words) that fits a noun has for it."""
    return next(words for pattern, words in rules.items() if re.search(pattern, noun))


def english(section: str, noun: dict[str, str], kind: str | bool = "") -> Forms:
    sg, pl = noun["sg"], noun["pl"]
    if section == "table":
        return {"sg": sg, "pl": pl, "rel": "who" if kind else "that"}
    vowel = sg[0] in "aeiouAEIOU" and not sg.startswith(("uni", "use", "usa", "uti", "one", "eu"))
    vowel = vowel or sg.startswith(("hour", "X-ray", "ID", "MRI", "SMS"))
    a = f"{'an' if vowel else 'a'} {sg}"
    forms: Forms = {"sg": sg, "pl": pl, "null": f"have no recorded {sg}"}
    # Not "have the free entry no".
    forms["eq"] = f'have "{{v}}" as their {sg}' if kind == "flag" else f"have the {sg} {{v}}"
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

# Numbers, by the ending of the first word of their noun: the question for them, and the adjectives
# of the largest and smallest. "Die höchste Länge" and "wie hoch ist die Flugnummer" are wrong.
GERMAN_NUMBERS = {
    r"(stunde|torminute)$": ("wie lautet", "wie lauten", "späteste", "früheste"),
    r"(dauer|zeit|frist|strecke|vorlauf|intervall|phase|garantie|verzug|takt)$": (
        *("wie lang ist", "wie lang sind", "längste", "kürzeste"),
    ),
    r"(länge|fläche|größe|menge|breite|weite|tiefe|distanz|entfernung|messer|umfang|masse)$"
    r"|(volumen|hubraum|tiefgang|unterschied|winkel|änderung|fehler|verspätung|verzögerung)$"
    r"|zeitrückstand$|^(hub|maximal|schnee)?höhe$": (
        *("wie groß ist", "wie groß sind", "größte", "kleinste"),
    ),
    r"(nummer|kennzeichen|leitzahl|isbn|code|version|stockwerk|reihe|semester|gengrad|tengrad)$"
    r"|(platz|platzierung|position)$": ("wie lautet", "wie lauten", "höchste", "niedrigste"),
    r"": ("wie hoch ist", "wie hoch sind", "höchste", "niedrigste"),
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
    ist, sind, sup, inf = ("wie lautet", "wie lauten", "späteste", "früheste")
    if kind == "number":
        ist, sind, sup, inf = words_for(sg.split()[0].lower(), GERMAN_NUMBERS)
    time = sup == "späteste"
    on = "dem " if kind == "date" else ""
    over, under = ("nach", "vor") if time else ("über", "unter")
    least = "ab" if time and kind != "date" else "von mindestens"
    return forms | {
        **{"ist": ist, "sind": sind, "sup": sup, "inf": inf},
        "eq": f"als {oblique} {{v}} haben",  # not "die Stadt Lyon haben"
        "null": f"k{a} eingetragen{forms['en']} {oblique} haben",
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

# A noun is split before its complement, where an adjective goes: "velocidad máxima media", "número
# actual medio de puntos". Some nouns are one with their complement: "tipo de interés medio".
SPANISH_SPLIT = re.compile(
    r"((?:esperanza de vida|código de barras|punto de fusión|tipo de interés)?.*?)"
    r"((?: cubierto)? (?:de|del|en|por|para|a|al|con|sin|entre|sobre|hasta|según) .*)?"
)

# The adjectives of large and small numbers, by how their noun begins: "la duración más larga", not
# "la duración más alta".
SPANISH_NUMBERS = {
    r"^(hora|minuto)\b": ("tardí{o}", "tempran{o}"),
    r"^((mejor )?tiempo|límite de tiempo|duración|plazo|periodo|garantía|intervalo)\b"
    r"|^(retraso|antelación|distancia)\b": ("larg{o}", "cort{o}"),
    r"^(superficie|tamaño|talla|capacidad|volumen|cantidad|tirada|población|activo|arqueo)\b"
    r"|^(longitud(?! geográfica)|diámetro|anchura|altura|espesor|profundidad|calado|eslora)\b"
    r"|^(envergadura|contorno|desnivel|pendiente|ángulo|diferencia|error|variación|cambio)\b"
    r"|^(aumento|cilindrada|carga|masa|dosis|ración|pérdida|descuadre|pedido|autonomía)\b": (
        *("grande", "pequeñ{o}"),
    ),
    r"": ("alt{o}", "baj{o}"),
}


def spanish(section: str, noun: dict[str, str], kind: str | bool = "") -> Forms:
    sg = noun["sg"]
    el, los, of_the, o, none, a = SPANISH[noun["gender"]]
    forms: Forms = {"sg": sg, "pl": noun["pl"], "el": el, "los": los, "del": of_the, "o": o}
    if section == "table":
        return forms | {"ningun": none}
    head, complement = SPANISH_SPLIT.fullmatch(sg).groups(default="")
    forms |= {"n": head, "de": complement, "un": a}
    forms |= {"eq": f"tienen como {sg} {{v}}", "null": f"no tienen {sg} registrad{o}"}
    pair = words_for(sg, SPANISH_NUMBERS) if kind == "number" else ("alt{o}", "baj{o}")
    pair = ("reciente", "antigu{o}") if kind in ("date", "year") else pair
    time = pair[0] in ("reciente", "tardí{o}")
    high, low = (f"más {adjective.format(o=o)}" for adjective in pair)
    forms |= spanish_degrees(o, high, low, time)
    above, below, on = forms["superior"], forms["inferior"], "el " if kind == "date" else ""
    to = "al" if kind == "date" else "a"
    least = "igual o posterior a" if time and kind != "date" else "de al menos"
    greatest = [f"{el} {sg} {forms[key]}" for key in ("alto", "bajo")]
    if not time:  # "la mayor agua", although it is "el agua"
        the = "la" if o == "a" else "el"
        greatest = [f"{the} {key} {sg}" for key in ("mayor", "menor")]
    return forms | {
        "gt": f"tienen {a} {sg} {above} {to} {{v}}",
        "ge": f"tienen {a} {sg} {least} {{v}}",
        "lt": f"tienen {a} {sg} {below} {to} {{v}}",
        "between": f"tienen {a} {sg} entre {on}{{v}} y {on}{{w}}",
        "max": f"con {greatest[0]}",
        "min": f"con {greatest[1]}",
    }


def spanish_degrees(o: str, high: str, low: str, time: bool) -> Forms:
    """The words for large and small values: of times, or of other numbers."""
    if not time:
        return {
            **{"mayor": "mayor", "menor": "menor", "alto": high, "bajo": low},
            **{"superior": "superior", "inferior": "inferior"},
            **{"desc": "de mayor a menor", "asc": "de menor a mayor"},
        }
    start, end = ("de la", "a la") if o == "a" else ("del", "al")
    return {
        **{"mayor": f"últim{o}", "menor": "primera" if o == "a" else "primer"},
        **{"alto": high, "bajo": low, "superior": "posterior", "inferior": "anterior"},
        **{"desc": f"{start} {high} {end} {low}", "asc": f"{start} {low} {end} {high}"},
    }


def spanish_reference(parent: Forms) -> Forms:
    to = "al" if parent["el"] == "el" else "a la"
    return {
        "by": f"pertenecen {to} {parent['sg']} {{v}}",
        "link": f"pertenecen a {parent['pl']} que {{a}}",
    }


# A noun is split before its complement, where an adjective goes: "premier niveau moyen
# d'enseignement". Some nouns are one with their complement: "chiffre d'affaires moyen".
FRENCH_SPLIT = re.compile(
    r"((?:chiffre d'affaires|tirant d'eau|taux d'intérêt|heure de pointe|point de fusion"
    r"|tour de taille|reste à charge|espérance de vie|dépôt de garantie"
    r"|plaque d'immatriculation)?.*?)"
    r"( (?:d'|(?:de|du|des|en|par|à|au|aux|sur|dans|après) ).*)?"
)
# The times that are not split: "année de fondation la plus récente". After a longer complement the
# adjective would seem to belong to it: "année la plus récente de la dernière éclaircie".
FRENCH_TIME = re.compile(r".+? d(?:'|e (?!l'))\S+")


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
    n, complement = FRENCH_SPLIT.fullmatch(sg).groups(default="")
    if kind in ("date", "year") and FRENCH_TIME.fullmatch(sg):
        n, complement = sg, ""
    extremes, above, below = french_degrees(e, str(kind))
    a, on = "une" if feminine else "un", "le " if kind == "date" else ""
    least = f"égal{e} ou postérieur{e} à" if kind == "year" else "d'au moins"
    return forms | {
        **{"n": n, "cpl": complement, "ne": "ne" if feminine else ""},
        **{"leur": f"leur {sg}", "son": f"{its} {sg}", **extremes},
        "eq": f"ont pour {sg} {{v}}",
        "null": f"n'ont pas {forms['de']}{sg} renseigné{e}",
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


# The adjectives of large and small numbers, by how their noun ends: 数が最も多い, not 数が最も高い.
JAPANESE_NUMBERS = {
    r"(時刻|得点時間)$": ("遅い", "早い"),
    r"タイム$": ("遅い", "速い"),  # the largest is the slowest
    r"(トン数|号数|順位|ランキング|順番|表示順|番号|学期)$"
    r"|((容|排気|変更)量|容積|体積|質量|荷重|大きさ|サイズ|直径|割合|差|経度|角度|傾斜|勾配)$"
    r"|(風速|明るさ|消費電力|出力|パワー|能力|負荷|値動き|(損失|被害|借入|運用資産)額)$": (
        *("大きい", "小さい"),
    ),
    r"(重さ|体重|重量)$": ("重い", "軽い"),
    r"心拍数$": ("高い", "低い"),
    r"(まで|から)の距離$": ("遠い", "近い"),
    r"((?<!光)年数|秒数|長さ|総延長|最大長|距離|時間|期間|周期|間隔|寿命)$": ("長い", "短い"),
    r"(数|量|人口|定員|ポイント|消費カロリー|収入|利益|残高|売上高|出来高)$"
    r"|(総資産|予算|利息分|元金分)$": ("多い", "少ない"),
    r"(面積|広さ|幅)$": ("広い", "狭い"),
    r"(深さ|深度|水深|喫水)$": ("深い", "浅い"),
    r"(速度|テンポ)$": ("速い", "遅い"),
    r"(強さ|張力)$": ("強い", "弱い"),
    r"": ("高い", "低い"),
}
# The places, by how their noun ends: they are asked for with "where".
JAPANESE_PLACES = r"(国|市|地域|地区|区域|州|町|場所|箇所|所在地|海域|住所|行き先|立地)$"


def japanese(section: str, noun: dict[str, str], kind: str | bool = "") -> Forms:
    n = noun["n"]
    if section == "table":
        u = noun["counter"]
        alive = kind or u in ("匹", "頭", "羽")
        exists = ("いる", "いない", "います") if alive else ("ある", "ない", "あります")
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
    unit = "年" if kind == "year" else ""
    high, low = ("高い", "低い")
    ask = "どこ" if re.search(JAPANESE_PLACES, n) else "何"
    if kind == "number":
        high, low = words_for(n, JAPANESE_NUMBERS)
        ask = "何時" if n.endswith("時刻") else "いくつ"
    elif kind in ("date", "year"):
        high, low, ask = "新しい", "古い", "何年" if unit else "いつ"
    time = low in ("古い", "早い")
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
        "ge": clauses(f"{v}以降" if time and kind != "date" else f"{v}以上"),
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


# The adjectives of large and small numbers, by how the noun begins. "Cao" (high) would do for few
# of them, and would repeat the noun in "chiều cao cao nhất". A numbering (số hiệu) is not a count.
VIETNAMESE_NUMBERS = {
    r"^số (?!(hiệu|dư|đo|áo|báo danh|điện thoại|tài khoản|thứ tự|sê-ri|tiền|lượng)\b)": (
        *("nhiều", "ít"),
    ),
    r"^(giờ|phút ghi) ": ("muộn", "sớm"),
    r"^(khoảng |khoảng cách |giới hạn |kỷ lục )?thời (lượng|gian|hạn)\b"
    r"|^(quãng đường|chu kỳ|tiêu cự)\b": ("dài", "ngắn"),
    r"^(số|chiều|bề|đường kính|độ (cao|sâu|dài|dày|xa|chênh)|diện tích|dung (tích|lượng))\b"
    r"|^(khoảng cách|khối lượng|trọng lượng|cân nặng|thể tích|kích thước|cỡ|tuổi(?! thọ))\b"
    r"|^(dân số|sức (chứa|nâng)|tải trọng|lượng|trữ lượng|sải cánh|tầm bay|mớn nước)\b"
    r"|^(góc|sai số|mã|biển số|thứ (hạng|tự)|vị trí)\b": ("lớn", "nhỏ"),
    r"": ("cao", "thấp"),
}


def vietnamese(section: str, noun: dict[str, str], kind: str | bool = "") -> Forms:
    n = noun["n"]
    if section == "table":
        classifier = noun["sg"].removesuffix(n).strip()
        return {"n": n, "sg": noun["sg"], "one": classifier or ("người" if kind else n)}
    ask = {"number": "là bao nhiêu", "year": "là năm nào", "date": "là ngày nào"}
    q = ask.get(str(kind), "là gì")
    unit = {"year": "năm ", "date": "ngày "}.get(str(kind), "")
    up, down = ("muộn", "sớm") if unit else words_for(n, VIETNAMESE_NUMBERS)
    time = up == "muộn"
    over, under = ("sau", "trước") if time else ("lớn hơn", "nhỏ hơn")
    onwards = "trở đi" if time and kind != "date" else "trở lên"
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


# The adjectives of large and small numbers, by how the noun ends: 数量最多, not 数量最高.
CHINESE_NUMBERS = {
    r"((?<!得)分|点|读|磅|倍)数$": ("高", "低"),
    r"(数|数量|人口|名额|[人场]次)$": ("多", "少"),
    r"(面积|龄|[容用血雨水肥种储积排重箱书]量|消耗量|[体材]积|[直口轮]径|尺寸|规模|大小（.*）)$"
    r"|([深宽厚坡角]度|水深|埋深|[体克承]重|落差|翼展|腰围|焦距|误差|风速|吨位|[号码])$": (
        *("大", "小"),
    ),
    r"(?<!行驶|绕行)距离$": ("远", "近"),
    r"(长度|时长|寿命|年限|里程|距离|航程|周期|间隔|用时|落后时间|反应时间)$": (*("长", "短"),),
    r"(时间|时刻)(（.*）)?$": ("晚", "早"),
    r"": ("高", "低"),
}


def chinese(section: str, noun: dict[str, str], kind: str | bool = "") -> Forms:
    n, m = noun["n"], noun["m"]
    if section == "table":
        return {
            **{"n": n, "m": m, "c": f"{m}{n}", "num": f"{n}数量", "ref": f"对应{n}"},
            **{"own": n, "of": f"的{n}", "has": "有", "no": "没有"},
        }
    k, unit = n, "年" if kind == "year" else ""
    if "是否" in n or n == "星期几":  # a question is quoted, to serve as a noun
        n, k = f"“{n}”", f"“{n}”取值"
    high, low = ("晚", "早") if kind in ("date", "year") else words_for(n, CHINESE_NUMBERS)
    time = high == "晚"
    above, below = ("晚于", "早于") if time else ("大于", "小于")
    least = "不早于" if time else "不小于"
    ask = {"number": "多少", "year": "哪一年", "date": "哪一天"}.get(str(kind), "什么")
    return {
        **{"n": n, "k": k, "m": m, "q": ask, "hi": high, "lo": low},
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
