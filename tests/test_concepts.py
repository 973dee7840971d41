"""The concepts of generated schemas are complete and consistent, in every language."""

import random
import re
from collections import Counter

import pytest

from sqlenv.embedded import LANGUAGES
from sqlenv.embedded.concepts import PARTS, load_concepts, load_words
from sqlenv.embedded.draw import Question
from sqlenv.embedded.lexicon import Lexicon
from sqlenv.embedded.sources import load_sources
from sqlenv.embedded.wording import WORDING

COLUMNS, TABLES = load_concepts()
SNAKE_CASE = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
INTEGER, DECIMAL = r"-?\d+", r"-?\d+(\.\d+)?"
KINDS = re.compile(
    rf"name|person|choice [^|]+(\|[^|]+){{1,6}}|int {INTEGER} {INTEGER}( \+)?"
    rf"|real {DECIMAL} {DECIMAL}( \+)?|(year|date) [12]\d{{3}} [12]\d{{3}}"
    r"|code [A-Z0-9.-]+(\|[A-Z0-9.-]+)*"
)


def test_there_are_many_concepts():
    assert sum(map(len, TABLES.values())) >= 400 and len(COLUMNS) >= 1500


@pytest.mark.parametrize("domain", TABLES)
def test_a_domain_is_consistent(domain):
    """Columns exist, foreign keys stay in the domain and are not circular, and every table is tied
    to the others.
    """
    tables = TABLES[domain]
    linked = set()
    for key, table in tables.items():
        assert set(table.columns) <= set(COLUMNS), key
        assert 5 <= len(table.columns) <= 9 and len(set(table.columns)) == len(table.columns), key
        assert set(table.refs) <= set(tables) - {key} and len(table.refs) <= 2, key
        linked |= {*table.refs, key} if table.refs else set()
    assert linked == set(tables)
    order = []
    while len(order) < len(tables):
        ready = [k for k, t in tables.items() if k not in order and set(t.refs) <= set(order)]
        assert ready, "foreign keys form a circle"
        order += ready


@pytest.mark.parametrize("concepts", [COLUMNS, *TABLES.values()], ids=["columns", *TABLES])
def test_names_are_identifiers(concepts):
    for key, concept in concepts.items():
        assert SNAKE_CASE.fullmatch(key), key
        assert 3 <= len(concept.names) == len(set(concept.names)) <= 5, key
        assert all(SNAKE_CASE.fullmatch(name) for name in concept.names), key


def test_kinds_can_be_drawn():
    for key, column in COLUMNS.items():
        assert KINDS.fullmatch(column.kind), (key, column.kind)
        if column.kind.startswith(("int", "real", "year", "date")):
            low, high = map(float, column.kind.split()[1:3])
            assert low < high, key


def test_numbers_that_name_a_thing_are_codes():
    """An average phone number has no meaning, nor has a gate number above 5."""
    names = [key for key in COLUMNS if key.endswith("_number")]
    names += ["phone", "license_plate", "postal_code", "barcode", "isbn", "seat_row"]
    assert len(names) >= 40
    assert {key for key in names if not COLUMNS[key].kind.startswith("code ")} == set()


@pytest.mark.parametrize("lang", LANGUAGES)
def test_every_concept_has_its_noun(lang):
    """All forms, none empty; and the tables of a domain, and the columns of a table, can be told
    apart by their nouns.
    """
    words = load_words(lang)
    table_keys = {key for tables in TABLES.values() for key in tables}
    assert set(words["tables"]) == table_keys and set(words["columns"]) == set(COLUMNS)
    for section, parts in zip(("tables", "columns"), PARTS[lang]):
        for key, noun in words[section].items():
            forms = {name: form for name, form in noun.items() if name != "obl"}
            assert tuple(forms) == parts and all(noun.values()), key
            assert all(form == form.strip() for form in noun.values()), key
    for tables in TABLES.values():
        nouns = Counter(next(iter(words["tables"][key].values())) for key in tables)
        assert max(nouns.values()) == 1, nouns.most_common(1)
        for key, table in tables.items():
            nouns = Counter(next(iter(words["columns"][c].values())) for c in table.columns)
            assert max(nouns.values()) == 1, (key, nouns.most_common(1))


def generic(lang: str, column: str, role: str) -> dict:
    return WORDING[lang][0]("column", load_words(lang)["columns"][column], role)


AFTER = {
    "en": "have a founding year after {v}",
    "de": "ein Gründungsjahr nach {v} haben",
    "es": "tienen un año de fundación posterior a {v}",
    "fr": "ont une année de fondation postérieure à {v}",
    "ja": "設立年が{v}年より後の",
    "vi": "có năm thành lập sau năm {v}",
    "zh": "成立年份晚于{v}年",
}


@pytest.mark.parametrize("lang", LANGUAGES)
def test_years_are_after_and_before_not_above_and_below(lang):
    """Year columns have all forms of numbers, and are worded as times."""
    year, number = (generic(lang, "founded_year", role) for role in ("year", "number"))
    assert set(year) == set(number)
    after = year["gt"]["base"] if lang == "ja" else year["gt"]
    assert after == AFTER[lang]
    assert all(year[key] != number[key] for key in ("ge", "lt", "max", "min"))
    sources = load_sources((lang,)).values()
    columns = [c for tables in sources for table in tables.values() for c in table.columns]
    assert year in [c.words[lang] for c in columns if c.kind.startswith("year ")]


def test_spanish_times_agree_with_their_noun():
    year = generic("es", "founded_year", "year")
    assert year["desc"] == "del más reciente al más antiguo"
    date = WORDING["es"][0]("column", {"sg": "fecha", "pl": "fechas", "gender": "f"}, "date")
    assert date["asc"] == "de la más antigua a la más reciente"


def noun(lang: str, sg: str, gender: str = "f", role: str = "number") -> dict:
    """The forms of a column's noun that is written out here."""
    parts = {"sg": sg, "gen": sg, "pl": f"{sg}s", "n": sg, "m": "种", "gender": gender}
    return WORDING[lang][0]("column", parts, role)


GERMAN = {
    "Dauer": "wie lang ist, längste, kürzeste",
    "Wartezeit in Minuten": "wie lang ist, längste, kürzeste",
    "Kündigungsfrist": "wie lang ist, längste, kürzeste",
    "Länge": "wie groß ist, größte, kleinste",
    "Fläche der Parks": "wie groß ist, größte, kleinste",
    "Dateigröße in Megabyte": "wie groß ist, größte, kleinste",
    "Flugnummer": "wie lautet, höchste, niedrigste",
    "Öffnungsstunde": "wie lautet, späteste, früheste",
    "Förderkapazität pro Stunde": "wie hoch ist, höchste, niedrigste",
    "Anzahl an Arbeitsstunden": "wie hoch ist, höchste, niedrigste",
    "Schadenshöhe": "wie hoch ist, höchste, niedrigste",
    "Einwohnerzahl": "wie hoch ist, höchste, niedrigste",
}


@pytest.mark.parametrize("sg", GERMAN)
def test_german_numbers_are_long_large_late_or_high(sg):
    forms = noun("de", sg)
    assert f"{forms['ist']}, {forms['sup']}, {forms['inf']}" == GERMAN[sg]
    assert forms["max"] == f"mit der {forms['sup']}n {sg}"


def test_german_values_are_not_a_part_of_their_noun():
    assert noun("de", "Stadt", role="category")["eq"] == "als Stadt {v} haben"
    hour = noun("de", "Öffnungsstunde")
    assert (hour["gt"], hour["ge"]) == (
        "eine Öffnungsstunde nach {v} haben",
        "eine Öffnungsstunde ab {v} haben",
    )


VIETNAMESE = {
    "số trang": ("nhiều", "ít"),
    "số bài báo": ("nhiều", "ít"),
    "số đoàn tàu": ("nhiều", "ít"),
    "số lượng tồn kho": ("lớn", "nhỏ"),
    "số đo vòng eo": ("lớn", "nhỏ"),
    "số điện thoại": ("lớn", "nhỏ"),
    "số tiền đã trả": ("lớn", "nhỏ"),
    "giờ đóng cửa": ("muộn", "sớm"),
    "giới hạn thời gian tính bằng giây": ("dài", "ngắn"),
    "quãng đường": ("dài", "ngắn"),
    "chiều dài": ("lớn", "nhỏ"),
    "diện tích": ("lớn", "nhỏ"),
    "tuổi": ("lớn", "nhỏ"),
    "tuổi thọ": ("cao", "thấp"),
    "giá mỗi đêm": ("cao", "thấp"),
    "độ ẩm": ("cao", "thấp"),
}


@pytest.mark.parametrize("n", VIETNAMESE)
def test_vietnamese_numbers_are_many_late_long_large_or_high(n):
    forms = noun("vi", n)
    assert (forms["up"], forms["down"]) == VIETNAMESE[n]
    assert forms["max"] == f"có {n} {forms['up']} nhất"
    assert ("sau {v}" in forms["gt"]) == ("trở đi" in forms["ge"]) == (forms["up"] == "muộn")


CHINESE = {
    "储物柜数量": ("多", "少"),
    "等候分钟数": ("多", "少"),
    "网前得分数": ("多", "少"),
    "执教场次": ("多", "少"),
    "信用分数": ("高", "低"),
    "电表读数": ("高", "低"),
    "农田面积": ("大", "小"),
    "平均树龄": ("大", "小"),
    "房间号": ("大", "小"),
    "文件大小（KB）": ("大", "小"),
    "与海滩的距离": ("远", "近"),
    "绕行距离": ("长", "短"),
    "时长": ("长", "短"),
    "落后时间": ("长", "短"),
    "起跑反应时间": ("长", "短"),
    "关门时间": ("晚", "早"),
    "进球时间（分钟）": ("晚", "早"),
    "价格": ("高", "低"),
}


@pytest.mark.parametrize("n", CHINESE)
def test_chinese_numbers_are_many_large_far_long_late_or_high(n):
    forms = noun("zh", n)
    high, low = forms["hi"], forms["lo"]
    assert (high, low) == CHINESE[n]
    assert (forms["max"], forms["min"]) == (f"{n}最{high}", f"{n}最{low}")
    assert forms["gt"] == f"{n}{'晚于' if high == '晚' else '大于'}{{v}}"


def test_chinese_questions_are_quoted_as_nouns():
    cold = noun("zh", "是否冷藏", role="category")
    assert (cold["n"], cold["k"], cold["eq"]) == (
        "“是否冷藏”",
        "“是否冷藏”取值",
        "“是否冷藏”为{v}",
    )
    assert noun("zh", "星期几", role="category")["k"] == "“星期几”取值"
    assert noun("zh", "状态", role="category")["k"] == "状态"


FRENCH = {
    "prix moyen": ("prix moyen", ""),
    "durée": ("durée", ""),
    "chiffre d'affaires": ("chiffre d'affaires", ""),
    "premier niveau d'enseignement": ("premier niveau", " d'enseignement"),
    "prix au mètre cube": ("prix", " au mètre cube"),
    "vitesse maximale du vent": ("vitesse maximale", " du vent"),
    "solde après opération": ("solde", " après opération"),
    "capital restant dû": ("capital restant dû", ""),
}


@pytest.mark.parametrize("sg", FRENCH)
def test_french_adjectives_stand_before_the_complement(sg):
    forms = noun("fr", sg)
    assert (forms["n"], forms["cpl"]) == FRENCH[sg]


@pytest.mark.parametrize("role", ["year", "date"])
def test_french_adjectives_follow_a_short_complement_of_a_time(role):
    """An adjective behind a long complement would agree with a noun in it."""
    short, long = (
        noun("fr", sg, "f", role) for sg in ("date d'ouverture", "date de la dernière réponse")
    )
    assert (short["n"], short["cpl"]) == ("date d'ouverture", "")
    assert (long["n"], long["cpl"]) == ("date", " de la dernière réponse")


def test_french_predicates():
    city, age = noun("fr", "ville", "f", "category"), noun("fr", "âge", "m")
    assert city["eq"] == "ont pour ville {v}"
    assert city["null"] == "n'ont pas de ville renseignée"
    assert age["null"] == "n'ont pas d'âge renseigné"


SPANISH = {
    "precio": ("precio", ""),
    "velocidad media": ("velocidad media", ""),
    "hora punta": ("hora punta", ""),
    "número actual de puntos": ("número actual", " de puntos"),
    "plazo en meses": ("plazo", " en meses"),
    "nota mínima para aprobar": ("nota mínima", " para aprobar"),
    "distancia al centro": ("distancia", " al centro"),
    "porcentaje cubierto por el seguro": ("porcentaje", " cubierto por el seguro"),
    "punto de fusión": ("punto de fusión", ""),
}


@pytest.mark.parametrize("sg", SPANISH)
def test_spanish_adjectives_stand_before_the_complement(sg):
    forms = noun("es", sg)
    assert (forms["n"], forms["de"]) == SPANISH[sg]


def test_spanish_predicates():
    duration = noun("es", "duración")
    assert duration["max"] == "con la mayor duración"
    assert duration["min"] == "con la menor duración"
    assert noun("es", "agua", "f el")["max"] == "con la mayor agua"  # not "el mayor agua"
    assert noun("es", "año", "m", "year")["max"] == "con el año más reciente"
    assert noun("es", "ciudad", "f", "category")["eq"] == "tienen como ciudad {v}"


@pytest.mark.parametrize("sg", ["duración en minutos", "plazo de entrega", "tiempo", "distancia"])
def test_spanish_numbers_are_long(sg):
    forms = noun("es", sg, "m")
    assert (forms["alto"], forms["bajo"]) == ("más largo", "más corto")


SPANISH_DEGREES = {
    "superficie": ("más grande", "más pequeña"),
    "talla del cuadro": ("más grande", "más pequeña"),
    "longitud de la pista": ("más grande", "más pequeña"),
    "altura": ("más grande", "más pequeña"),
    "longitud geográfica": ("más alta", "más baja"),
    "diferencia de tiempo": ("más grande", "más pequeña"),
    "velocidad máxima": ("más alta", "más baja"),
    "edad": ("más alta", "más baja"),
    "hora de apertura": ("más tardía", "más temprana"),
}


@pytest.mark.parametrize("sg", SPANISH_DEGREES)
def test_spanish_numbers_are_large_high_or_late(sg):
    forms = noun("es", sg)
    assert (forms["alto"], forms["bajo"]) == SPANISH_DEGREES[sg]


def test_spanish_hours_are_times():
    hour = noun("es", "hora de apertura")
    assert hour["gt"] == "tienen una hora de apertura posterior a {v}"
    assert hour["ge"] == "tienen una hora de apertura igual o posterior a {v}"
    assert hour["max"] == "con la hora de apertura más tardía"
    assert hour["desc"] == "de la más tardía a la más temprana"


JAPANESE = {
    "パレットの数": "多い 少ない",
    "商品数": "多い 少ない",
    "人口": "多い 少ない",
    "購入点数": "多い 少ない",
    "降水量": "多い 少ない",
    "排気量": "大きい 小さい",
    "総トン数": "大きい 小さい",
    "心拍数": "高い 低い",
    "合格点": "高い 低い",
    "契約年数": "長い 短い",
    "地球からの光年数": "多い 少ない",
    "坑道の長さ": "長い 短い",
    "所要時間": "長い 短い",
    "走行距離": "長い 短い",
    "ビーチまでの距離": "遠い 近い",
    "面積": "広い 狭い",
    "作業幅": "広い 狭い",
    "荷物の重さ": "重い 軽い",
    "離陸重量": "重い 軽い",
    "積雪の深さ": "深い 浅い",
    "最高速度": "速い 遅い",
    "ゴールタイム": "遅い 速い",
    "タイム差": "大きい 小さい",
    "痛みの強さ": "強い 弱い",
    "直径": "大きい 小さい",
    "輸出の割合": "大きい 小さい",
    "順位": "大きい 小さい",
    "営業開始時刻": "遅い 早い",
    "標高": "高い 低い",
    "価格": "高い 低い",
}


@pytest.mark.parametrize("n", JAPANESE)
def test_japanese_numbers_have_the_adjectives_of_their_nouns(n):
    forms = noun("ja", n)
    assert f"{forms['hi']} {forms['lo']}" == JAPANESE[n]
    assert forms["max"]["jun"] == f"{n}が{forms['hi']}順"


def test_japanese_hours_are_times():
    hour = noun("ja", "営業開始時刻")
    assert hour["q"] == "何時"
    assert [hour[key]["te"] for key in ("gt", "ge", "lt", "between")] == [
        *("営業開始時刻が{v}より後で", "営業開始時刻が{v}以降で", "営業開始時刻が{v}より前で"),
        "営業開始時刻が{v}から{w}までで",
    ]


def test_japanese_asks_where_a_place_is():
    asked = {n: noun("ja", n, role="category")["q"] for n in ("国", "保管区域", "声域", "状態")}
    assert asked == {"国": "どこ", "保管区域": "どこ", "声域": "何", "状態": "何"}


@pytest.mark.parametrize("counter, verb", [("匹", "います"), ("頭", "います"), ("台", "あります")])
def test_japanese_animals_are_alive(counter, verb):
    assert WORDING["ja"][0]("table", {"n": "もの", "counter": counter}, False)["masu"] == verb


def test_english_articles():
    assert noun("en", "utility cost")["gt"] == "have a utility cost above {v}"
    assert noun("en", "hourly rate")["gt"] == "have an hourly rate above {v}"


def test_english_answers_of_yes_or_no_are_quoted():
    assert noun("en", "free entry", role="flag")["eq"] == 'have "{v}" as their free entry'
    columns = [c for t in load_sources(("en",)).values() for s in t.values() for c in s.columns]
    flags = {c.words["en"]["eq"] for c in columns if c.kind == "choice yes|no"}
    assert len(flags) > 100 and all('"{v}"' in predicate for predicate in flags)


NULL = {
    "en": ("have no recorded price", "have no recorded price"),
    "de": ("keinen eingetragenen price haben", "keine eingetragene price haben"),
    "es": ("no tienen price registrado", "no tienen price registrada"),
    "fr": ("n'ont pas de price renseigné", "n'ont pas de price renseignée"),
    "vi": ("chưa có thông tin về price", "chưa có thông tin về price"),
    "zh": ("price未知", "price未知"),
}


@pytest.mark.parametrize("lang", NULL)
def test_null_is_a_value_that_nobody_recorded(lang):
    """IS NULL does not say that a thing has none."""
    assert tuple(noun(lang, "price", gender)["null"] for gender in "mf") == NULL[lang]
    if lang == "de":
        assert noun(lang, "Alter", "n")["null"] == "kein eingetragenes Alter haben"


def test_japanese_counts_men_and_women_apart():
    """Not 性別別."""
    lexicon = Lexicon("ja")
    lexicon.entries["db"] = {"staff": {"n": "社員", "gender": {"n": "性別", "s": "性別"}}}
    lexicon.templates["group_count"] = ["{t.n}の{g.s}別の数。"]
    question = Question("db", "group_count", "", {"t": ("staff",), "g": ("staff", "gender")})
    assert lexicon.phrase(question, random.Random(0)) == "社員の男女別の数。"
