"""The page over HTTP, by the standard library alone: for this machine only unless told otherwise."""

import io
import ipaddress
import json
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socket import AF_INET6
from socketserver import ThreadingTCPServer
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

from PIL import Image

from diffusiondet_runtime.pictures import turned

from .picture_dial import PictureDial, UnknownPicture

PAGE = Path(__file__).with_name('page.html')
MOST_BYTES = 20 * 2**20  # of an uploaded file
MOST_SETTINGS_BYTES = 10_000
MOST_UPLOADS = 4  # under way at once
SECONDS_OF_SILENCE = 30  # after which a connection is closed
THUMBNAIL = 160  # pixels of the longer side
HEADERS = {
    'Content-Security-Policy': "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
                               "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
                               "frame-ancestors 'none'",
    'X-Content-Type-Options': 'nosniff',
    'Referrer-Policy': 'no-referrer',
    'Cross-Origin-Resource-Policy': 'same-origin',
    'Cache-Control': 'no-store',
}


class Answer(NamedTuple):
    """What goes back."""

    content: bytes
    kind: str = 'application/json'
    status: HTTPStatus = HTTPStatus.OK


class RequestRefused(Exception):
    """A request that is not served: status, and the reason in words for who sits before the page."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class PageServer(ThreadingTCPServer):
    """Takes its port when it is made, so that a taken one is known before a model is loaded.

    Args:
        host (str): address to listen on; a loopback address is for this machine alone.
        port (int): 0 takes a free one.

    Attributes:
        dial (PictureDial): what the page turns; set before ``serve_forever`` is called.
        about (dict): of the model, as JSON takes it, for the page.
        examples (Sequence[Path]): picture files to try.

    Raises:
        OSError: if the port is taken, or the address is none of this machine's.
    """

    daemon_threads = True
    allow_reuse_address = True
    dial: PictureDial
    about: dict
    examples: Sequence[Path] = ()

    def __init__(self, host: str, port: int) -> None:
        if ':' in host:
            self.address_family = AF_INET6
        super().__init__((host, port), PageHandler)
        self.uploads = threading.BoundedSemaphore(MOST_UPLOADS)

    @contextmanager
    def place(self) -> Iterator[None]:
        """One of :data:`MOST_UPLOADS` for a picture on its way in; :class:`RequestRefused` where all are taken."""
        if not self.uploads.acquire(blocking=False):
            raise RequestRefused(HTTPStatus.SERVICE_UNAVAILABLE, 'others are sending pictures; try again')
        try:
            yield
        finally:
            self.uploads.release()

    def handle_error(self, request: object, client_address: object) -> None:
        """A browser that goes away in the middle is no fault."""
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)

    @property
    def is_local(self) -> bool:
        """Whether it is for this machine alone."""
        return is_loopback(self.server_address[0])

    @property
    def address(self) -> str:
        """For a browser."""
        host, port = self.server_address[:2]
        return f'http://{f"[{host}]" if ":" in host else host}:{port}'


class PageHandler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = 'HTTP/1.1'
    timeout = SECONDS_OF_SILENCE
    disable_nagle_algorithm = True  # else headers wait for the other side before the content goes
    server: PageServer

    def do_GET(self) -> None:  # noqa: N802  the standard library's name
        """The page, the model, pictures."""
        self._answer(self._get)

    def do_POST(self) -> None:  # noqa: N802
        """A picture, an example, settings."""
        self._answer(self._post)

    def _get(self, place: list[str]) -> Answer:
        match place:
            case ['']:
                return Answer(PAGE.read_bytes(), 'text/html; charset=utf-8')
            case ['model']:
                return _json(dict(self.server.about, examples=[path.name for path in self.server.examples]))
            case ['examples', number]:
                return Answer(_thumbnail(self._example(number)), 'image/jpeg')
            case ['pictures', key]:
                return Answer(self.server.dial.picture(key).shown, 'image/jpeg')
        raise RequestRefused(HTTPStatus.NOT_FOUND, 'there is no such page')

    def _post(self, place: list[str]) -> Answer:
        match place:
            case ['pictures']:
                name, = parse_qs(urlsplit(self.path).query).get('name', [''])[:1]
                with self.server.place():
                    return self._kept(self._body(MOST_BYTES), name)
            case ['examples', number]:
                path = self._example(number)
                with self.server.place():
                    return self._kept(path.read_bytes(), path.name)
            case ['pictures', key, 'boxes']:
                return _json(self.server.dial.turn(key, _settings(self._body(MOST_SETTINGS_BYTES))))
        raise RequestRefused(HTTPStatus.NOT_FOUND, 'there is no such page')

    def _kept(self, content: bytes, name: str) -> Answer:
        key = self.server.dial.add(content, name)
        width, height = self.server.dial.picture(key).size
        return _json(dict(picture=key, width=width, height=height))

    def _example(self, number: str) -> Path:
        if not number.isascii() or not number.isdigit() or int(number) >= len(self.server.examples):
            raise RequestRefused(HTTPStatus.NOT_FOUND, 'there is no such example')
        return self.server.examples[int(number)]

    def _body(self, most: int) -> bytes:
        length = self.headers.get('Content-Length', '')
        if not length.isascii() or not length.isdigit():
            raise RequestRefused(HTTPStatus.LENGTH_REQUIRED, 'a request with content says how long it is')
        if int(length) > most:
            raise RequestRefused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                                 f'{int(length) / 2**20:.1f} MiB are too much; at most {most / 2**20:g} are taken')
        self._is_read = True
        return self.rfile.read(int(length))

    def _answer(self, serve: Callable[[list[str]], Answer]) -> None:
        self._is_read = not (self.headers.get('Content-Length') or self.headers.get('Transfer-Encoding'))
        try:
            self._refuse_foreign_pages()
            answer = serve(urlsplit(self.path).path.removeprefix('/').split('/'))
        except RequestRefused as error:
            answer = _error(error.status, str(error))
        except UnknownPicture:
            answer = _error(HTTPStatus.GONE, 'the picture made room for later ones; give it again')
        except ValueError as error:
            answer = _error(HTTPStatus.BAD_REQUEST, str(error))
        except TimeoutError:
            self.close_connection = True
            return
        except Exception as error:  # a fault of ours or a full memory: said on the page, and the server goes on
            self.log_error('%s', f'{type(error).__name__}: {error}')
            answer = _error(HTTPStatus.INTERNAL_SERVER_ERROR, f'{type(error).__name__}: {error}')
        if not self._is_read:
            self.close_connection = True  # what was not read would be taken for the next request
        self.send_response(answer.status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header('Content-Type', answer.kind)
        self.send_header('Content-Length', str(len(answer.content)))
        if self.close_connection:
            self.send_header('Connection', 'close')
        self.end_headers()
        self.wfile.write(answer.content)

    def _refuse_foreign_pages(self) -> None:
        """Pages of other sites that are open in the same browser may neither ask nor, under a name of theirs that
        leads here, read."""
        host, origin = self.headers.get('Host', ''), self.headers.get('Origin')
        if self.server.is_local and not is_loopback(urlsplit(f'//{host}').hostname or ''):
            raise RequestRefused(HTTPStatus.FORBIDDEN, f'this page is for this machine alone, not for {host}')
        if origin is not None and urlsplit(origin).netloc != host:
            raise RequestRefused(HTTPStatus.FORBIDDEN, f'pages of {origin} may not use this one')
        # A link from elsewhere may open the page; pictures and figures are for the page itself.
        if self.path != '/' and self.headers.get('Sec-Fetch-Site') in ('cross-site', 'same-site'):
            raise RequestRefused(HTTPStatus.FORBIDDEN, 'pages of other sites may not use this one')

    def log_request(self, code: object = '-', size: object = '-') -> None:
        """Not every request is worth a line."""

    def log_error(self, text: str, *values: object) -> None:
        """Nor is a connection that nobody uses any more."""
        if not text.startswith('Request timed out'):
            super().log_error(text, *values)


def is_loopback(host: str) -> bool:
    """Whether an address or name is for this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == 'localhost'


def _settings(content: bytes) -> dict:
    try:
        settings = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError('settings must be a JSON object') from error
    if not isinstance(settings, dict):
        raise ValueError('settings must be a JSON object')
    return settings


@lru_cache(maxsize=64)
def _thumbnail(path: Path) -> bytes:
    with Image.open(path) as image:
        image.draft('RGB', (THUMBNAIL, THUMBNAIL))  # a JPEG need not be decoded whole
        small, buffer = turned(image).convert('RGB'), io.BytesIO()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    small.save(buffer, format='JPEG')
    return buffer.getvalue()


def _json(content: dict) -> Answer:
    try:
        return Answer(json.dumps(content, allow_nan=False).encode())
    except ValueError as error:
        raise FloatingPointError('the model gives boxes or scores that are no numbers') from error


def _error(status: HTTPStatus, reason: str) -> Answer:
    return Answer(json.dumps(dict(error=reason)).encode(), status=status)
