"""Provisioning: the server's answer, and the QR code that the client makes of it, read back by a decoder."""

import io
import json
import re
from pathlib import Path
from typing import Any, Final

import pytest
import zxingcpp
from PIL import Image, ImageDraw
from pytest_django import Settings

from devices.models import EnrollmentToken
from tests.support.actors import Admin, Client, Phone
from tests.support.fleet_command import InProcess, Ran, run

SERVER: Final = "https://mdm.example.com"
COMPONENT: Final = "com.example.agent/.AdminReceiver"
DOWNLOAD: Final = "https://mdm.example.com/agent.apk"
CHECKSUM: Final = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"
PIXELS: Final = 4
"""The width and height of a module in a picture of this test."""

BLOCKS: Final = {" ": (255, 255), "▄": (255, 0), "▀": (0, 255), "█": (0, 0)}


class Screen(io.StringIO):
    """A terminal."""

    def isatty(self) -> bool:
        """Return True, as a terminal does."""
        return True


class OldScreen(io.TextIOWrapper):
    """A terminal without block characters."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="ascii", errors="backslashreplace", write_through=True)


@pytest.fixture
def network(client: Client, admin: Admin) -> InProcess:
    """A transport to a server with an empty database."""
    return InProcess(client)


@pytest.fixture
def provisioning(settings: Settings) -> None:
    """Configure provisioning."""
    settings.PUBLIC_URL, settings.AGENT_COMPONENT = SERVER, COMPONENT
    settings.AGENT_DOWNLOAD_URL, settings.AGENT_SIGNATURE_CHECKSUM = DOWNLOAD, CHECKSUM


def expected(token: str) -> dict[str, Any]:
    return {
        "android.app.extra.PROVISIONING_DEVICE_ADMIN_COMPONENT_NAME": COMPONENT,
        "android.app.extra.PROVISIONING_DEVICE_ADMIN_PACKAGE_DOWNLOAD_LOCATION": DOWNLOAD,
        "android.app.extra.PROVISIONING_DEVICE_ADMIN_SIGNATURE_CHECKSUM": CHECKSUM,
        "android.app.extra.PROVISIONING_ADMIN_EXTRAS_BUNDLE": {
            "nexmdm.server_url": SERVER,
            "nexmdm.enrollment_token": token,
        },
    }


def decoded(picture: Image.Image) -> Any:
    """Return the JSON in the one QR code of a picture."""
    (code,) = zxingcpp.read_barcodes(picture)
    assert code.format == zxingcpp.BarcodeFormat.QRCode
    return json.loads(code.text)


def drawn(text: str) -> Image.Image:
    """Return the picture that a terminal shows: each character is two modules, one above the other."""
    lines = [list(line) for line in text.splitlines() if line and set(line) <= set(BLOCKS)]
    picture = Image.new("L", (len(lines[0]), 2 * len(lines)), 255)
    for y, line in enumerate(lines):
        for x, character in enumerate(line):
            for half in (0, 1):
                picture.putpixel((x, 2 * y + half), BLOCKS[character][half])
    return picture.resize((picture.width * PIXELS, picture.height * PIXELS), Image.Resampling.NEAREST)


def rasterised(svg: str) -> Image.Image:
    """Return the picture of an SVG whose one stroked path has horizontal lines, each one module high."""
    (size,) = re.findall(r'<svg [^>]*width="(\d+)"', svg)
    (line,) = re.findall(r'<path [^>]*stroke="#000" d="([^"]+)"', svg)
    width, x, y = int(size) // 8 * PIXELS, 0.0, 0.0
    picture = Image.new("L", (width, width), 255)
    pen = ImageDraw.Draw(picture)
    for command, given in re.findall(r"([A-Za-z])([^A-Za-z]*)", line):
        numbers = [float(number) for number in given.split()]
        if command == "h":
            top = (y - 0.5) * PIXELS
            pen.rectangle((x * PIXELS, top, (x + numbers[0]) * PIXELS - 1, top + PIXELS - 1), fill=0)
            x += numbers[0]
        else:
            assert command in "Mm"
            x, y = (numbers[0], numbers[1]) if command == "M" else (x + numbers[0], y + numbers[1])
    return picture


def token_of(ran: Ran) -> str:
    assert ran.status == 0, ran.err
    return ran.out.removesuffix("\n")


def test_without_its_settings_the_answer_has_no_provisioning(admin: Admin, settings: Settings) -> None:
    assert admin.post("/admin/enrollment-tokens", {}).json["provisioning"] is None
    settings.PUBLIC_URL = SERVER
    assert admin.post("/admin/enrollment-tokens", {}).json["provisioning"] is None
    settings.PUBLIC_URL, settings.AGENT_COMPONENT = "", COMPONENT
    assert admin.post("/admin/enrollment-tokens", {}).json["provisioning"] is None


def test_the_answer_to_making_a_token_has_the_content_of_the_code(admin: Admin, provisioning: None) -> None:
    made = admin.post("/admin/enrollment-tokens", {}).json
    assert made["provisioning"] == expected(made["enrollment_token"])
    assert all("provisioning" not in row for row in admin.get("/admin/enrollment-tokens").json["items"])


def test_an_agent_that_is_installed_already_needs_no_download(
    admin: Admin, provisioning: None, settings: Settings
) -> None:
    settings.AGENT_DOWNLOAD_URL = settings.AGENT_SIGNATURE_CHECKSUM = ""
    made = admin.post("/admin/enrollment-tokens", {}).json
    assert {name.rpartition(".")[2] for name in made["provisioning"]} == {
        "PROVISIONING_DEVICE_ADMIN_COMPONENT_NAME", "PROVISIONING_ADMIN_EXTRAS_BUNDLE",
    }  # fmt: skip


@pytest.mark.parametrize(("name", "code"), [("code.png", "png"), ("code.SVG", "svg")])
def test_a_file_carries_exactly_the_content_and_only_its_owner_can_read_it(
    network: InProcess, provisioning: None, tmp_path: Path, name: str, code: str
) -> None:
    path = tmp_path / name
    ran = run("enroll-token", "--qr-file", str(path), transport=network)
    picture = Image.open(path) if code == "png" else rasterised(path.read_text())
    content = decoded(picture)
    assert content == expected(token_of(ran))
    assert (path.stat().st_mode & 0o777, str(path) in ran.err) == (0o600, True)
    token = content["android.app.extra.PROVISIONING_ADMIN_EXTRAS_BUNDLE"]["nexmdm.enrollment_token"]
    assert Phone(network.client, "phone-1").register(token).status == 200


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_terminal_shows_the_code_black_on_white_and_a_pipe_without_colours(
    network: InProcess, provisioning: None, monkeypatch: pytest.MonkeyPatch, is_terminal: bool
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    err = Screen() if is_terminal else io.StringIO()
    ran = run("enroll-token", "--qr", transport=network, err=err)
    lines = err.getvalue().splitlines()
    coloured = [re.fullmatch(r"\x1b\[38;5;16;48;5;231m(.*)\x1b\[0m", line) for line in lines]
    assert any(coloured) == is_terminal
    text = "\n".join(found[1] if found else line for found, line in zip(coloured, lines, strict=True))
    assert decoded(drawn(text)) == expected(token_of(ran))


def test_json_on_standard_output_stays_json_with_a_code_next_to_it(network: InProcess, provisioning: None) -> None:
    ran = run("enroll-token", "--qr", "--json", transport=network)
    assert decoded(drawn(ran.err)) == ran.json["provisioning"] == expected(ran.json["enrollment_token"])


def test_the_longest_values_of_the_settings_fit_into_one_code(
    network: InProcess, provisioning: None, settings: Settings, tmp_path: Path
) -> None:
    settings.AGENT_COMPONENT = "com.example/" + "A" * 500
    settings.AGENT_DOWNLOAD_URL = DOWNLOAD + "?" + "a" * (1024 - len(DOWNLOAD) - 1)
    settings.PUBLIC_URL = "https://" + ".".join(["a" * 63] * 3) + ".example:65535"
    token_of(run("enroll-token", "--qr-file", str(tmp_path / "code.png"), transport=network))
    content = decoded(Image.open(tmp_path / "code.png"))
    assert content["android.app.extra.PROVISIONING_DEVICE_ADMIN_COMPONENT_NAME"] == settings.AGENT_COMPONENT


def test_a_file_that_exists_stays_as_it_is_and_no_token_is_made(
    network: InProcess, provisioning: None, tmp_path: Path
) -> None:
    path = tmp_path / "code.png"
    path.write_text("something else")
    ran = run("enroll-token", "--qr-file", str(path), transport=network)
    assert (ran.status, path.read_text(), EnrollmentToken.objects.count()) == (1, "something else", 0)
    assert "exists already" in ran.err


@pytest.mark.parametrize(
    ("name", "status", "reason"), [("code.gif", 2, "must end in .png or .svg"), ("no/code.png", 1, "cannot be created")]
)
def test_a_file_that_cannot_be_written_makes_no_token(
    network: InProcess, provisioning: None, tmp_path: Path, name: str, status: int, reason: str
) -> None:
    ran = run("enroll-token", "--qr-file", str(tmp_path / name), transport=network)
    assert (ran.status, EnrollmentToken.objects.count()) == (status, 0)
    assert reason in ran.err


def test_a_server_without_provisioning_is_named_and_leaves_neither_token_nor_file(
    network: InProcess, tmp_path: Path
) -> None:
    path = tmp_path / "code.png"
    ran = run("enroll-token", "--qr", "--qr-file", str(path), transport=network)
    assert (ran.status, ran.out, path.exists()) == (1, "", False)
    assert "PUBLIC_URL" in ran.err
    assert "AGENT_COMPONENT" in ran.err
    assert EnrollmentToken.objects.get().revoked_at is not None


def test_a_terminal_that_is_too_narrow_gets_no_broken_code(
    network: InProcess, provisioning: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    err = Screen()
    ran = run("enroll-token", "--qr", transport=network, err=err)
    assert (ran.status, ran.out) == (1, "")
    assert "columns" in err.getvalue()
    assert EnrollmentToken.objects.get().revoked_at is not None


def test_a_terminal_without_block_characters_gets_no_broken_code(network: InProcess, provisioning: None) -> None:
    err = OldScreen()
    assert run("enroll-token", "--qr", transport=network, err=err).status == 1
    err.seek(0)
    assert "--qr-file" in err.read()
    assert EnrollmentToken.objects.get().revoked_at is not None


def test_a_refused_token_leaves_no_file(network: InProcess, provisioning: None, tmp_path: Path) -> None:
    path = tmp_path / "code.png"
    assert run("enroll-token", "--max-uses", "0", "--qr-file", str(path), transport=network).status == 1
    assert not path.exists()
