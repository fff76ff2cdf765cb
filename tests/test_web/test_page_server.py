"""The page's requests, as a browser and as others make them."""

import http.client
import io
import json
import socket
import threading
import time

import numpy as np
import pytest
from made_pictures import picture
from PIL import Image

from mmdet_diffusion.web import PageServer, page_server


@pytest.fixture
def ask(server):
    def request(method, path, body=None, **headers):
        connection = http.client.HTTPConnection(*server.server_address[:2], timeout=60)
        connection.request(method, path, body=body, headers={name.replace('_', '-'): value
                                                             for name, value in headers.items()})
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        is_json = answer.headers['Content-Type'] == 'application/json'
        return answer.status, json.loads(content) if is_json else content, answer.headers
    return request


def test_a_picture_goes_in_and_boxes_come_out(ask):
    status, sent, _ = ask('POST', '/pictures?name=a.png', picture())
    place = f'/pictures/{sent.pop("picture")}'
    assert (status, sent) == (200, dict(width=150, height=90))
    status, found, _ = ask('POST', f'{place}/boxes', json.dumps(dict(num_proposals=7, sampling_timesteps=2)))
    assert status == 200 and np.shape(found['moments'][-1]['bboxes']) == (7, 4)
    assert ask('GET', place)[1].startswith(b'\xff\xd8')


def test_the_page_says_where_it_starts_and_asks_nothing_of_others(ask):
    status, page, headers = ask('GET', '/')
    assert status == 200 and b'<!doctype html>' in page
    assert "default-src 'none'" in headers['Content-Security-Policy']
    assert b'http://' not in page and b'https://' not in page and b'//cdn' not in page
    about = ask('GET', '/model')[1]
    assert about['settings']['num_proposals'] == 20 and about['examples'] == ['example.png']
    assert len(about['classes']) == 6 and about['stages'] == 5


def test_an_example_is_a_picture(ask):
    assert ask('GET', '/examples/0')[1].startswith(b'\xff\xd8')
    status, sent, _ = ask('POST', '/examples/0')
    assert (status, sent['width'], sent['height']) == (200, 150, 90)


@pytest.mark.parametrize(('method', 'path', 'body', 'status', 'reason'), [
    ('GET', '/nothing', None, 404, 'no such page'), ('GET', '/examples/1', None, 404, 'no such example'),
    ('GET', '/examples/-1', None, 404, 'no such example'), ('GET', '/../setup.py', None, 404, 'no such page'),
    ('POST', '/pictures', b'no picture', 400, 'cannot be read as a picture'),
    ('GET', '/pictures/7', None, 410, 'give it again'), ('POST', '/pictures/7/boxes', b'{}', 410, 'give it again'),
    ('POST', '/pictures/7/boxes', b'{', 400, 'must be a JSON object'),
    ('POST', '/pictures/7/boxes', b'[]', 400, 'must be a JSON object'),
    ('POST', '/pictures/7/boxes', b'[' * 9000, 400, 'must be a JSON object'),
    ('POST', '/pictures/7/boxes', b'{"eta": 3}', 400, 'eta must be a number in 0..1, got 3'),
    ('POST', '/pictures/7/boxes', b' ' * 10_001, 413, 'are too much')])
def test_what_is_wrong_is_said(ask, method, path, body, status, reason):
    answer = ask(method, path, body)
    assert answer[0] == status and reason in answer[1]['error']


def test_a_large_file_is_refused_before_it_is_sent(server):
    with socket.create_connection(server.server_address[:2], timeout=20) as client:
        client.sendall(b'POST /pictures HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n')
        answer = client.makefile('rb').read()  # to the end: the connection is closed
    assert answer.startswith(b'HTTP/1.1 413 ') and b'at most 20 are taken' in answer


def test_content_without_a_length_is_refused(server):
    with socket.create_connection(server.server_address[:2], timeout=20) as client:
        client.sendall(b'POST /pictures HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n')
        answer = client.makefile('rb').read()  # to the end: what was not read is not taken for a request
    assert answer.startswith(b'HTTP/1.1 411 ') and answer.count(b'HTTP/1.1') == 1


def test_uploads_at_once_are_bounded(ask, server):
    for _ in range(page_server.MOST_UPLOADS):
        server.uploads.acquire()
    assert ask('POST', '/pictures', picture())[0] == ask('POST', '/examples/0')[0] == 503
    server.uploads.release()
    assert ask('POST', '/pictures', picture())[0] == 200
    assert ask('POST', '/pictures', b'no picture')[0] == 400  # gives its place back
    assert ask('POST', '/pictures', picture())[0] == 200


def test_other_sites_and_names_that_lead_here_are_refused(ask):
    assert ask('GET', '/model', Host='evil.example')[0] == 403
    assert ask('POST', '/pictures', picture(), Origin='https://evil.example')[0] == 403
    assert ask('GET', '/model', Host='localhost:1', Origin='http://localhost:1')[0] == 200
    for site, at_page, at_figures in (('cross-site', 200, 403), ('same-site', 200, 403), ('same-origin', 200, 200)):
        assert ask('GET', '/', Sec_Fetch_Site=site)[0] == at_page
        assert ask('GET', '/examples/0', Sec_Fetch_Site=site)[0] == at_figures


def test_a_fault_is_said_and_the_server_goes_on(ask, server, monkeypatch, capfd):
    place = f'/pictures/{ask("POST", "/pictures?name=a.png", picture())[1]["picture"]}/boxes'
    with monkeypatch.context() as patch:
        patch.setattr(server.dial, 'turn', lambda key, changes: 1 / 0)
        status, content, _ = ask('POST', place, b'{}')
    assert status == 500 and 'ZeroDivisionError' in content['error']
    assert 'ZeroDivisionError' in capfd.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(server.dial, 'turn', lambda key, changes: dict(score=float('nan')))
        assert 'no numbers' in ask('POST', place, b'{}')[1]['error']
    assert ask('POST', place, b'{}')[0] == 200


def test_several_at_once_get_their_own(ask):
    place = f'/pictures/{ask("POST", "/pictures?name=a.png", picture())[1]["picture"]}/boxes'
    alone = [ask('POST', place, json.dumps(dict(seed=seed)))[1]['detections'] for seed in range(4)]
    together = [None] * 4

    def turn(seed):
        together[seed] = ask('POST', place, json.dumps(dict(seed=seed)))[1]['detections']

    threads = [threading.Thread(target=turn, args=(seed, )) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone


def test_an_answer_does_not_wait_for_the_other_side(server):
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=60)
    seconds = []
    for _ in range(15):
        start = time.perf_counter()
        connection.request('GET', '/model')
        connection.getresponse().read()
        seconds.append(time.perf_counter() - start)
    connection.close()
    assert sorted(seconds)[5] < 0.03  # 0.04 and more where headers and content wait for an acknowledgement


def test_a_thumbnail_stands_as_its_picture_does(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned
    Image.new('RGB', (300, 100)).save(tmp_path / 'turned.jpg', exif=exif)
    with Image.open(io.BytesIO(page_server._thumbnail(tmp_path / 'turned.jpg'))) as image:
        assert image.height == page_server.THUMBNAIL > image.width


def test_a_taken_port_is_an_error_at_once(server):
    with pytest.raises(OSError, match='in use'):
        PageServer(*server.server_address[:2])


@pytest.mark.parametrize(('host', 'local'), [('127.0.0.1', True), ('127.1.2.3', True), ('::1', True), ('[x', False),
                                             ('localhost', True), ('0.0.0.0', False), ('192.168.0.3', False)])
def test_what_is_for_this_machine_alone(host, local):
    assert page_server.is_loopback(host) is local
