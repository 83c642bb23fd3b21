"""Lay out a state machine as a diagram: the positions of its states and the arrows between them.

A state's row is the length of the longest path to it, so that arrows point down. The first transition out of a state
stays in its column; the others open new columns to the right.
"""

from typing import Any

WIDTH, HEIGHT, GAP_X, GAP_Y, MARGIN = 232, 52, 36, 38, 26  # of a box; between boxes; around the diagram


def transitions(state: dict[str, Any]) -> list[tuple[str, str]]:
    """The possible next states: (name, condition)."""
    found = [(choice["Next"], condition(choice)) for choice in state.get("Choices", [])]
    if "Default" in state:
        found.append((state["Default"], "otherwise"))
    if "Next" in state:
        found.append((state["Next"], ""))
    caught = [(catch["Next"], " ".join(catch["ErrorEquals"])) for catch in state.get("Catch", [])]
    return found + [each for each in caught if each[0] != state.get("Next")]  # one arrow to the same state is enough


def condition(choice: dict[str, Any]) -> str:
    """A choice's JSONata without its delimiters and the common prefix `$states.input.`."""
    return str(choice.get("Condition", "")).strip("{}% ").removeprefix("$states.input.")


def kind(state: dict[str, Any]) -> str:
    """What a state does: the end of its resource, such as lambda:invoke, or its type."""
    return ":".join(state["Resource"].split(":")[-2:]) if "Resource" in state else state["Type"]


def layout(definition: dict[str, Any]) -> dict[str, Any]:
    """The diagram: {width, height, box_width, start, boxes, arrows}, all lengths in SVG units.

    boxes   [{name, kind, x, y, ends}]; `ends`: whether the state is terminal
    arrows  [{source, target, condition, points}]
    start   the x of the first state's centre
    """
    states, start = definition["States"], definition["StartAt"]
    rows, columns = {start: 0}, {start: 0}
    assign_cells(start, states, rows, columns, [start])
    for name in states.keys() - rows.keys():  # unreachable
        rows[name], columns[name] = max(rows.values()) + 1, 0
    centre = {name: MARGIN + columns[name] * (WIDTH + GAP_X) + WIDTH / 2 for name in states}
    top = {name: MARGIN + 16 + rows[name] * (HEIGHT + GAP_Y) for name in states}
    boxes = [
        {
            "name": name,
            "kind": kind(state),
            "x": centre[name] - WIDTH / 2,
            "y": top[name],
            "ends": not transitions(state),
        }
        for name, state in states.items()
    ]
    arrows = []
    for name, state in states.items():
        for target, label in transitions(state):
            source_x, source_y, x, y = centre[name], top[name] + HEIGHT, centre[target], top[target]
            bend = y - GAP_Y / 2
            points = [(source_x, source_y), (source_x, bend), (x, bend), (x, y)]
            if y <= source_y:  # back to an earlier state, around the right side
                side = centre[name] + WIDTH / 2 + GAP_X / 2
                points = [(source_x + WIDTH / 2, source_y - HEIGHT / 2), (side, source_y - HEIGHT / 2)]
                points += [(side, y + HEIGHT / 2), (x + WIDTH / 2, y + HEIGHT / 2)]
            elif source_x == x:
                points = [(source_x, source_y), (x, y)]
            arrows.append({"source": name, "target": target, "condition": label, "points": points})
    width = 2 * MARGIN + max(columns.values()) * (WIDTH + GAP_X) + WIDTH
    height = max(top.values()) + HEIGHT + MARGIN + 8
    size = {"width": width, "height": height, "box_width": WIDTH}
    return {**size, "start": centre[start], "boxes": boxes, "arrows": arrows}


def assign_cells(
    name: str, states: dict[str, Any], rows: dict[str, int], columns: dict[str, int], path: list[str]
) -> None:
    """Assign rows and columns to the states after `name`; `path` are the states before it, to detect loops."""
    for target, _ in transitions(states[name]):
        if target in path:
            continue
        if target not in columns:
            first = target == transitions(states[name])[0][0]
            columns[target] = columns[name] if first else max(columns.values()) + 1
        if rows.get(target, -1) <= rows[name]:
            rows[target] = rows[name] + 1
            assign_cells(target, states, rows, columns, [*path, target])
