"""Four seeds side by side: queued as drafts, shown as a contact sheet, one of them run in full."""

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from tests.conftest import ASSETS
from tests.ui.conftest import Site, fill

PHOTO = ASSETS / "coffee.jpg"


def test_four_seeds_stand_side_by_side_one_is_deleted_and_another_is_run_in_full(
    site: Site, open_page: Callable[..., Page], subtests: pytest.Subtests
) -> None:
    page = open_page(site.url)
    fill(page, PHOTO, "night falls")
    page.click("#sweep")
    expect(page.locator("#stage .tile[data-status=completed]")).to_have_count(4)
    drafts = site.queue.list(order="asc")
    assert len({job.request.seed for job in drafts}) == 4
    assert {job.request.steps for job in drafts} == {site.settings.limits.range("steps")[0]}

    with subtests.test("a draft is deleted and the three others stay"):
        # Delete failed for each draft of a sweep: the page asked for a job by the text of what it showed.
        page.locator("#stage .tile a").first.click()
        page.click("#delete")
        page.click("#delete-yes")
        expect(page.locator("#stage .tile[data-status=completed]")).to_have_count(3)
        assert [job.id for job in site.queue.list(order="asc")] == [job.id for job in drafts[1:]]

    with subtests.test("the chosen one is run in full"):
        page.locator("#stage .tile button").nth(1).click()
        expect(page.locator("#stage video").first).to_be_visible()
        expect(page.locator("#stage .tile")).to_have_count(0)
        full = site.queue.wait_sync(site.queue.list()[0].id, 60)
        assert full.id not in {job.id for job in drafts}
        assert full.request.seed == drafts[2].request.seed
        assert full.request.steps > drafts[2].request.steps
