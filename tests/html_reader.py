"""Reads a page as a browser would, and fails on what is not closed."""

from html.parser import HTMLParser


class Reader(HTMLParser):
    """Collects tags, attributes and text, and fails on tags that are not closed in order; ``void`` ones never are."""

    def __init__(self, text, *, void=("meta",)):
        super().__init__()
        self.void = void
        self.open, self.tags, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())
