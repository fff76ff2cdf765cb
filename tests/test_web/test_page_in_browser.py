"""The page in a headless Chromium: ``make test-page``. Skipped elsewhere where playwright or a Chromium is missing."""

import importlib
import os
import shutil

import pytest
from made_pictures import picture

BROWSER = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
if os.environ.get('BROWSER_TESTS') == 'required':
    assert BROWSER, 'there is no chromium, chromium-browser or google-chrome on the PATH'
    sync_api = importlib.import_module('playwright.sync_api')
else:
    sync_api = pytest.importorskip('playwright.sync_api')
    pytestmark = pytest.mark.skipif(BROWSER is None, reason='there is no Chromium')
PIXELS = """canvas => {
  const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
  let sum = 0;
  for (let i = 0; i < pixels.length; i++) sum = (sum * 31 + pixels[i]) % 1000003;
  return sum;
}"""


@pytest.fixture
def page(server):
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=['--no-sandbox'])
        page = browser.new_page()
        page.requests, page.faults = [], []
        page.on('request', lambda request: page.requests.append((request.method, request.url)))
        page.on('pageerror', lambda error: page.faults.append(str(error)))
        page.on('console', lambda message: page.faults.append(message.text) if message.type == 'error' else None)
        page.goto(server.address)
        page.locator('#examples button').wait_for()
        yield page
        browser.close()


def give(page, seed=0):
    page.locator('#file').set_input_files([dict(name='a.png', mimeType='image/png', buffer=picture(seed))])
    page.get_by_text('detections', exact=True).wait_for()
    page.locator('body:not(.busy)').wait_for()


def turned(page, id_, value):
    """Fill a number and wait for the boxes."""
    with page.expect_response(lambda answer: answer.url.endswith('/boxes')):
        page.locator(f'#{id_}').fill(value)
    page.locator('body:not(.busy)').wait_for()


def drawn(page):
    return page.locator('#canvas').evaluate(PIXELS)


def posts(page):
    return [url.rsplit('/', 1)[-1].split('?')[0] for method, url in page.requests if method == 'POST']


def test_a_picture_goes_in_boxes_come_out_and_sliders_change_them(page, server):
    page.locator('#score_thr').fill('0')
    give(page)
    objects = page.locator('#facts').inner_text()
    assert 'objects' in objects and 'head' in objects
    before = drawn(page)
    turned(page, 'num_proposals', '3')
    assert drawn(page) != before
    before = drawn(page)
    turned(page, 'seed', '9')
    assert drawn(page) != before
    assert posts(page) == ['pictures', 'boxes', 'boxes', 'boxes']  # the picture was sent once
    page.locator('#score_thr').fill('1')
    assert 'objects 0' in page.locator('#facts').inner_text().replace('\n', ' ')
    assert posts(page) == ['pictures', 'boxes', 'boxes', 'boxes']  # a threshold asks for nothing
    assert all(url.startswith((server.address, 'data:')) for _, url in page.requests)
    assert not page.faults


def test_the_scrubber_goes_through_steps_and_stages(page):
    give(page)
    turned(page, 'sampling_timesteps', '2')
    scrubber, place = page.locator('#scrubber'), page.locator('#place')
    seen = []
    for position in ('0', '3', '6', '11', '12'):
        scrubber.fill(position)
        seen.append((place.inner_text(), drawn(page)))
    assert [text for text, _ in seen] == ['step 1 of 2, t = 999, noise', 'step 1 of 2, t = 999, stage 3 of 5',
                                          'step 2 of 2, t = 499, noise', 'step 2 of 2, t = 499, stage 5 of 5',
                                          'detections']
    assert len({pixels for _, pixels in seen}) == 5
    page.locator('#play').click()
    page.get_by_text('step 1 of 2, t = 999, stage').wait_for()
    page.get_by_text('detections', exact=True).wait_for()
    assert not page.faults


def test_settings_can_be_taken_along(page):
    turned_line = page.locator('#line')
    page.locator('#renewal').uncheck()
    page.locator('#num_proposals_range').fill('8')
    assert 'model.test_cfg.num_proposals=100 ' in turned_line.inner_text()
    assert 'model.test_cfg.renewal_score_thr=None ' in turned_line.inner_text()


def test_a_picture_that_made_room_is_sent_again(page, server):
    give(page)
    server.dial.pictures.clear()
    turned(page, 'seed', '3')
    page.get_by_text('detections', exact=True).wait_for()
    page.locator('body:not(.busy)').wait_for()
    assert posts(page).count('pictures') == 2 and page.locator('#message').inner_text() == ''


def test_what_is_no_picture_is_said_and_the_next_one_goes(page):
    page.locator('#file').set_input_files([dict(name='a.png', mimeType='image/png', buffer=b'no picture')])
    page.get_by_text('this cannot be read as a picture').wait_for()
    page.locator('#examples button').first.click()
    page.get_by_text('detections', exact=True).wait_for()
    assert page.locator('#message').inner_text() == ''
    page.locator('#file').set_input_files([dict(name='a.png', mimeType='image/png', buffer=b'no picture')])
    page.get_by_text('this cannot be read as a picture').wait_for()
    sent = posts(page).count('pictures')
    turned(page, 'seed', '5')  # of the example, which is still there
    assert posts(page).count('pictures') == sent and page.locator('#message').inner_text() == ''


def test_a_number_that_is_none_is_said_and_not_sent(page):
    give(page)
    sent = len(posts(page))
    for number in ('', '1.5'):
        page.locator('#eta').fill(number)
        page.get_by_text('eta: ').last.wait_for()
    page.wait_for_timeout(300)
    assert len(posts(page)) == sent
    turned(page, 'eta', '0.33')
    assert 'model.test_cfg.eta=0.33 ' in page.locator('#line').inner_text()


def test_a_picture_of_a_program_that_was_started_anew_is_sent_again(page, server, dial):
    give(page)
    server.dial = type(dial)(dial.predictor)
    other = server.dial.add(picture(9), 'b.png')
    turned(page, 'seed', '3')
    page.locator('body:not(.busy)').wait_for()
    assert posts(page).count('pictures') == 2 and len(server.dial.pictures) == 2 and other in server.dial.pictures


def test_arrow_keys_go_from_moment_to_moment_and_a_stopped_scrubber_stays(page):
    give(page)
    page.locator('#scrubber').focus()
    for _ in range(2):
        page.keyboard.press('ArrowLeft')
    assert page.locator('#place').inner_text() == 'step 1 of 1, t = 999, stage 4 of 5'
    turned(page, 'seed', '3')
    assert page.locator('#place').inner_text() == 'step 1 of 1, t = 999, stage 4 of 5'


def test_a_file_can_be_chosen_again_after_an_example(page):
    give(page)
    page.locator('#examples button').first.click()
    page.locator('#examples button[aria-pressed=true]').wait_for()
    page.locator('body:not(.busy)').wait_for()
    give(page)
    assert posts(page).count('pictures') == 2
