# SPDX-License-Identifier: Apache-2.0
"""Parse HTML reports."""

from html.parser import HTMLParser


class Parsed(HTMLParser):
    """Parses a page: tags with their attributes, texts of cells, and a check that elements are closed."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.cells, self.open = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img", "input", "source", "br"):
            self.open.append(tag)
        if tag in ("td", "th", "dd", "dt", "caption", "h1", "title"):
            self.cells.append((tag, ""))

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag

    def handle_data(self, data):
        if self.open and self.cells and self.open[-1] == self.cells[-1][0]:
            self.cells[-1] = (self.cells[-1][0], self.cells[-1][1] + data)

    def all(self, tag, kind=""):
        return [attrs for name, attrs in self.tags if name == tag and kind in ["", *attrs.get("class", "").split()]]

    def texts(self, *tags):
        return [text for tag, text in self.cells if tag in tags]


def parsed(path):
    page = Parsed(path.read_text(encoding="utf-8"))
    assert not page.open
    return page
