"""Every link within the documentation leads somewhere."""

import pytest

from tests.unit.docs.pages import DOCS, ROOT, Page, made, written

PAGES = {page.path.resolve(): page for page in (*written(), *made())}


@pytest.mark.parametrize("page", PAGES.values(), ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page: Page) -> None:
    for link in page.links():
        if link.startswith(("https://", "mailto:")):
            continue
        target, _, anchor = link.partition("#")
        path = (page.path.parent / target).resolve() if target else page.path.resolve()
        assert path in PAGES or path.exists(), f"{page.name}: {link} leads nowhere"
        if page.path.is_relative_to(DOCS):
            assert path.is_relative_to(DOCS), f"{page.name}: {link} leaves the site"
        if anchor:
            assert anchor in PAGES[path].anchors(), f"{page.name}: {link} names no heading"


def test_links_are_not_http() -> None:
    assert not [link for page in written() for link in page.links() if link.startswith("http://")]


def test_the_readme_is_short_and_leads_to_every_page_for_people() -> None:
    readme = PAGES[ROOT / "README.md"]
    assert len(readme.text.splitlines()) < 200
    linked = {(ROOT / link.partition("#")[0]).resolve() for link in readme.links()}
    guides = {page.path for page in written() if page.path.parent in (DOCS / "tutorials", DOCS / "how-to")}
    assert guides <= linked
