"""Removes what SQLite parses and never looks up: tables of WITH that nothing reads, and windows
that nothing uses. The names in them need not exist, so a policy could write any words there.
"""

from collections.abc import Iterator

from encoder.aliases import (
    bodies_after_as,
    is_table_after_in,
    is_used_window,
    tables_of_with,
)
from sqlenv.query import Edit, Query, name_of, parse


def without_unused(query: Query) -> Query:
    """The query without the tables of WITH and the windows that its result does not depend on.

    >>> without_unused(parse("WITH a AS (SELECT 1), b AS (SELECT x FROM y) SELECT * FROM a")).sql
    'WITH a AS (SELECT 1) SELECT * FROM a'
    """
    bodies = dict(bodies_after_as(query))
    changes = list(removals(query, bodies, used_definitions(query, bodies)))
    return parse(query.edited(changes)) if changes else query


def used_definitions(query: Query, bodies: dict[int, range]) -> set[int]:
    """The definitions that the query needs, each given by the token of its name.

    Args:
        bodies: {token of the name: tokens of the definition}, of all of them.
    """
    uses = dict(definitions_used(query, bodies))
    # A use inside other definitions counts as soon as all of them are used.
    waiting = {i: {name for name, body in bodies.items() if i in body} for i in uses}
    ready, used = [uses[i] for i in uses if not waiting[i]], set()
    while ready:
        definition = ready.pop()
        if definition in used:
            continue
        used.add(definition)
        for i, around in waiting.items():
            if definition in around:
                around.remove(definition)
                ready += [] if around else [uses[i]]
    return used


def definitions_used(query: Query, bodies: dict[int, range]) -> Iterator[tuple[int, int]]:
    """Where tables of WITH and windows are used, each with the token that names its definition."""
    tables = tables_of_with(query, bodies)
    scopes = {i: scope_of(query, i) for i in bodies}
    defined: dict[str, list[int]] = {}
    for i in sorted(bodies):
        defined.setdefault(name_of(query.tokens[i]), []).append(i)
    read = {source.item for select in query.selects for source in select.all_sources()}
    for i, token in enumerate(query.tokens):
        is_qualified = "." in (query.tokens[i - 1].text, query.next_text(i))  # no table of WITH
        same_name = defined.get(name_of(token), [])
        if is_used_window(query, i):
            here = query.select_of[i]
            visible = [w for w in same_name if w not in tables and query.select_of[w] is here]
        elif not is_qualified and (i in read or is_table_after_in(query, i)):
            visible = [table for table in same_name if table in tables and i in scopes[table]]
        else:
            continue
        if visible:
            # The innermost; of windows with the same name, the last.
            yield i, max(visible, key=lambda definition: (scopes[definition].start, definition))


def scope_of(query: Query, i: int) -> range:
    """The tokens between the innermost parentheses around a token."""
    around = (range(first, last) for first, last in query.closing.items() if first < i < last)
    return max(around, key=lambda span: span.start, default=range(len(query.tokens)))


def removals(query: Query, bodies: dict[int, range], used: set[int]) -> Iterator[Edit]:
    """Yields the edits that remove unused definitions with their commas, or a whole list with its
    WITH or WINDOW.
    """
    unused = [bodies[name] for name in bodies.keys() - used]
    for names in lists_of(query, bodies):
        start, stop = names[0] - 1, bodies[names[-1]].stop + 1
        start -= query.tokens[start].text == "recursive"
        if query.tokens[start].text not in ("with", "window") or any(start in b for b in unused):
            continue
        if used.isdisjoint(names):
            yield Edit(start, stop, "")
            continue
        follows_used = False
        for name in names:
            if name in used:
                follows_used = True
            else:  # with the comma before it, or the one after it if nothing before it stays
                stop = bodies[name].stop + 1
                first, last = (name - 1, stop) if follows_used else (name, stop + 1)
                yield Edit(first, last, "")


def lists_of(query: Query, bodies: dict[int, range]) -> list[list[int]]:
    """The definitions of each WITH and WINDOW, in order."""
    by_end: dict[int, list[int]] = {}  # by the parenthesis that ends the list so far
    for name in sorted(bodies):
        before = by_end.pop(name - 2, []) if query.tokens[name - 1].text == "," else []
        by_end[bodies[name].stop] = [*before, name]
    return list(by_end.values())
