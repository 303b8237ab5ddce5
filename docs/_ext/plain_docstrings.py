# SPDX-License-Identifier: Apache-2.0
"""Sphinx extension: convert docstrings of plain text with Google-style sections to reStructuredText.

The docstrings of fastds are read with help(); characters such as * and | have no markup meaning there, and formulas are
set as indented or aligned lines. The conversion runs before napoleon, which then reads the sections.
"""

import re

SECTIONS = ("Args", "Returns", "Raises", "Yields", "Warns", "Attributes", "Example", "Examples")
NAMED = ("Args", "Raises", "Warns", "Attributes")  # sections whose entries are "name: description"


def escape(text: str) -> str:
    """Escape the markup characters of reStructuredText; text in backticks becomes a literal."""
    parts = re.split(r"`+([^`\n]+)`+", text)
    for k, part in enumerate(parts):
        if k % 2:
            parts[k] = f"``{part.strip()}``"
        else:
            part = re.sub(r"([\\*|`])", r"\\\1", part)
            parts[k] = re.sub(r"(?<=\w)_(?!\w)", r"\\_", part)
    return "".join(parts)


def indentation(line: str) -> int:
    return len(line) - len(line.lstrip())


def is_formula(lines: list[str]) -> bool:
    """Return True for a paragraph whose line breaks and indentation must be preserved."""
    if any(indentation(line) for line in lines):
        return True
    return bool(re.match(r"[\w\[\], ']+(\(.*?\))? = ", lines[0]))


def convert_paragraph(lines: list[str]) -> list[str]:
    if lines[0].startswith(("* ", "- ")):
        return [line[:2] + escape(line[2:]) for line in lines] + [""]
    first = 0
    while first < len(lines) and not is_formula(lines[first:]):
        first += 1
    # A text line that introduces an indented formula stays text; everything from the formula on is literal.
    text, literal = lines, []
    if any(indentation(line) for line in lines):
        first = next(k for k, line in enumerate(lines) if indentation(line))
        if first and re.match(r"[\w\[\], ']+(\(.*?\))? = ", lines[first - 1]):
            first -= 1
        text, literal = lines[:first], lines[first:]
    elif is_formula(lines):
        text, literal = [], lines
    result = [escape(line) for line in text] + [""] if text else []
    if literal:
        result += ["::", "", *("    " + line for line in literal), ""]
    return result


def convert_section(name: str, lines: list[str]) -> list[str]:
    """Convert the lines below the heading of a section; they are indented by 4 columns or stand at the margin."""
    body = [line for line in lines]
    while body and not body[-1].strip():
        body.pop()
    if name in NAMED:
        converted = []
        for line in body:
            match = re.match(r"^(    [^\s:][^:]*:)(\s.*|)$", line)
            converted.append(match[1].replace("*", r"\*") + escape(match[2]) if match else escape(line))
        return [f"{name}:", *converted, ""]
    return [f"{name}:", *(escape(line) for line in body), ""]


def convert(lines: list[str]) -> list[str]:
    """Convert the lines of a docstring."""
    result, paragraph, k = [], [], 0
    while k < len(lines):
        line = lines[k]
        heading = re.match(rf"({'|'.join(SECTIONS)}):(?: +(\S.*))?$", line)
        warns = re.match(r"Warns \(UserWarning\)", line)
        if paragraph and (heading or warns or not line.strip()):
            result += convert_paragraph(paragraph)
            paragraph = []
        if heading:
            body, k = ([f"    {heading[2]}"] if heading[2] else []), k + 1
            while k < len(lines) and (not lines[k].strip() or lines[k].startswith("    ")):
                if not lines[k].strip() and not any(rest.startswith("    ") for rest in lines[k + 1 : k + 2]):
                    break
                body.append(lines[k])
                k += 1
            if heading[2] and heading[1] in NAMED:  # "Raises: TEXT" on the line of the heading
                body = ["    " + entry for entry in _entries(body)]
            if heading[1] == "Returns":  # napoleon takes the text before a colon for a type
                text = " ".join(part.strip() for part in body)
                result += ["", ":returns: " + escape(text), ""]
            else:
                result += convert_section(heading[1], body)
            continue
        if line.strip():
            paragraph.append(line)
        k += 1
    if paragraph:
        result += convert_paragraph(paragraph)
    return result


def _entries(body: list[str]) -> list[str]:
    """Split "TypeError: text. ValueError: text" at the names of the exceptions."""
    text = " ".join(line.strip() for line in body)
    parts = re.split(r"(?:(?<=[.;] )|^)(?=[A-Z]\w*(?:Error|Warning)\b)", text)
    return [re.sub(r"^(\w+(?:Error|Warning)) ", r"\1: ", part.strip()) for part in parts if part]


def process(app, what, name, obj, options, lines):
    lines[:] = convert(list(lines))


def setup(app):
    app.connect("autodoc-process-docstring", process, priority=400)
    return {"parallel_read_safe": True}
