"""Make UI workflows from API workflows, laid out by a short description.

``python -m tools.comfy_harness.ui_workflow hyperbooth_dreambooth_lora`` reads ``workflows/api/<name>.json`` and
``tools/comfy_harness/layouts/<name>.json`` and has ComfyUI's own frontend, in headless Chromium, write
``workflows/<name>.json``, and a thumbnail if there is none. Needs Chromium on PATH.

A layout names every node once, in groups of columns from left to right:

| key      | meaning                                                                                   |
|----------|-------------------------------------------------------------------------------------------|
| groups   | list of ``title``, ``color``, ``columns``: lists of node ids from top to bottom           |
| notes    | own id -> ``title``, ``text`` (Markdown, a list of lines)                                 |
| sizes    | id -> ``[width, height]``, where the node's minimum size is not the best                  |
| settings | id -> widget -> value, for what an API workflow does not hold (``control_after_generate``)|
| lanes    | ids whose links run along a lane of reroutes below the groups, not behind other nodes     |
| models   | id -> the model files the frontend offers to download when they are missing               |
| thumbnail| titles of the groups on the thumbnail, which shows their middle                            |
"""

import argparse
import base64
import io
import json
import shutil
import subprocess
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import websocket
from PIL import Image, ImageOps

from .import_pack import ROOT
from .server import Server, prepare_base, running_server

FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--remote-debugging-port=0",
]  # fmt: skip
SETTINGS = {"Comfy.TutorialCompleted": True, "LiteGraph.Canvas.MinFontSizeForLOD": 0}
"""Settings of the frontend: no welcome screen, and text at every zoom."""
WINDOW = {"width": 3840, "height": 2160}
"""Large, so that the frontend's own panels lie far from the graph in the middle."""
THUMBNAIL = (480, 480)
"""Square, as the cards of the template browser."""
GAPS = {"title": 30, "between": 60, "inside": 20, "apart": 60}
"""Height of a node's title bar, and gaps: between nodes (Nodes 2.0 draws them up to 50 higher), inside a group's
edge, between columns."""

LAY_OUT = """
async ({name, api, layout, gaps}) => {
  await app.loadApiJson(api, name);
  const graph = app.rootGraph, laidOut = new Set();
  const nodes = Object.fromEntries(Object.keys(api).map(id => [id, graph.getNodeById(id)]));
  for (const [id, {title, text}] of Object.entries(layout.notes ?? {})) {
    graph.add(nodes[id] = LiteGraph.createNode("MarkdownNote"));
    nodes[id].title = title;
    nodes[id].widgets[0].value = text.join("\\n");
  }
  for (const [id, models] of Object.entries(layout.models ?? {})) nodes[id].properties.models = models;
  for (const [id, settings] of Object.entries(layout.settings ?? {}))
    for (const [widget, value] of Object.entries(settings))
      nodes[id].widgets.find(found => found.name === widget).value = value;
  const size = id => layout.sizes?.[id] ?? nodes[id].computeSize().map(Math.ceil);
  let left = 0;
  for (const {title, color, columns} of layout.groups) {
    const group = new LiteGraph.LGraphGroup(title);
    let x = left + gaps.inside, bottom = 0;
    for (const column of columns) {
      const width = Math.max(...column.map(id => size(id)[0]));
      let y = gaps.title + gaps.inside;
      for (const id of column) {
        if (laidOut.has(id)) throw new Error(`layout: node ${id} is named twice`);
        laidOut.add(id);
        nodes[id].setSize([width, size(id)[1]]);
        nodes[id].pos = [x, y + gaps.title];
        y += gaps.title + size(id)[1] + gaps.between;
      }
      x += width + gaps.apart;
      bottom = Math.max(bottom, y - gaps.between + gaps.inside);
    }
    group.color = color;
    group.pos = [left, 0];
    group.size = [x - gaps.apart + gaps.inside - left, bottom];
    graph.add(group);
    left += group.size[0] + gaps.apart;
  }
  const height = Math.max(...graph.groups.map(group => group.size[1]));
  for (const group of graph.groups) group.size = [group.size[0], height];
  (layout.lanes ?? []).forEach(id => nodes[id].outputs.forEach((output, slot) => {
    const links = output.links.map(link => graph.links.get(link)), step = 20 * slot, stops = new Map();
    const goal = link => graph.getNodeById(link.target_id).pos[0] - gaps.apart + step / 2;
    const y = height + 2 * gaps.inside + step;
    let last = graph.setReroute({pos: [nodes[id].pos[0] + nodes[id].size[0] + gaps.apart - step / 2, y]});
    for (const x of [...new Set(links.map(goal))].sort((a, b) => a - b))
      stops.set(x, last = graph.setReroute({pos: [x, y], parentId: last.id}));
    for (const link of links) {
      let stop = stops.get(goal(link));
      link.parentId = stop.id;
      for (; stop; stop = graph.reroutes.get(stop.parentId)) stop.linkIds.add(link.id);
    }
  }));
  const missing = Object.keys(nodes).filter(id => !laidOut.has(id));
  if (missing.length) throw new Error(`layout: no position for node ${missing.join(", ")}`);
  return graph.serialize();
}
"""

FRAME = """
async (titles) => {
  const groups = app.rootGraph.groups.filter(group => titles.includes(group.title) || !titles.length);
  const edges = side => [
    Math.min(...groups.map(group => group.pos[side])),
    Math.max(...groups.map(group => group.pos[side] + group.size[side])),
  ];
  const [left, right] = edges(0), [top, end] = edges(1);
  const lanes = titles.length ? [] : [...app.rootGraph.reroutes.values()].map(reroute => reroute.pos[1] + 40);
  const bottom = Math.max(end, ...lanes);
  const ds = app.canvas.ds, page = ds.element.getBoundingClientRect();
  ds.scale = Math.min(page.width * 0.8 / (right - left), page.height * 0.6 / (bottom - top));
  ds.offset = [(page.width / ds.scale - left - right) / 2, (page.height / ds.scale - top - bottom) / 2];
  app.canvas.setDirty(true, true);
  await new Promise(done => setTimeout(done, 1500));
  const [x, y] = ds.convertOffsetToCanvas([left, top]);
  return [page.x + x, page.y + y, (right - left) * ds.scale, (bottom - top) * ds.scale];
}
"""


class Page:
    """Control a page in headless Chromium over its debugging protocol.

    Args:
        connection: websocket connection to the page.
    """

    def __init__(self, connection: websocket.WebSocket):
        self._connection, self._calls = connection, 0
        self.console: list[str] = []
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> Any:
        """Send one command of the protocol; store console messages that arrive meanwhile in ``console``."""
        self._calls += 1
        self._connection.send(json.dumps({"id": self._calls, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._connection.recv())
            if message.get("id") == self._calls:
                break
            self._note(message.get("method"), message.get("params", {}))
        if "error" in message:
            raise RuntimeError(f"{method}: {message['error']['message']}")
        return message["result"]

    def run(self, function: str, argument: Any = None) -> Any:
        """Call a JavaScript function, asynchronous or not; argument and result pass as JSON."""
        expression = f"({function})({json.dumps(argument)})"
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"]["exception"].get("description", "no description"))
        return answer["result"].get("value")

    def open(self, server: Server) -> None:
        """Load the frontend and wait until it accepts workflows."""
        server.post("/settings", SETTINGS)
        self.call("Page.navigate", url=f"http://127.0.0.1:{server.port}/")
        until = time.monotonic() + 120
        while not self.run("() => !!window.app?.canvas?.ds && app.extensionManager?.spinner === false"):
            if time.monotonic() > until:
                raise TimeoutError("the frontend did not come up: " + "; ".join(self.console[-5:]))
            time.sleep(0.3)

    def screenshot(self) -> Image.Image:
        """Return a screenshot of the page."""
        png = base64.b64decode(self.call("Page.captureScreenshot")["data"])
        return Image.open(io.BytesIO(png)).convert("RGB")

    def _note(self, event: str, data: Any) -> None:
        if event == "Runtime.consoleAPICalled":
            values = [str(a.get("value", a.get("description", ""))) for a in data["args"]]
            self.console.append(f"{data['type']}: {' '.join(values)}")
        elif event == "Runtime.exceptionThrown":
            self.console.append(f"exception: {data['exceptionDetails']}")
        elif event == "Log.entryAdded":
            entry = data["entry"]
            self.console.append(f"{entry['level']}: {entry['text']} {entry.get('url', '')}")


@contextmanager
def browser_page() -> Iterator[Page]:
    """Open an empty page in a new Chromium."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        raise RuntimeError("no Chromium on PATH; install it (Debian: apt install chromium)")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            address = _page_address(Path(profile) / "DevToolsActivePort", process)
            connection = websocket.create_connection(address, timeout=300, suppress_origin=True)
            page = Page(connection)
            page.call("Emulation.setDeviceMetricsOverride", **WINDOW, deviceScaleFactor=1, mobile=False)
            yield page
            connection.close()
        finally:
            process.terminate()
            process.wait()


def _page_address(port_file: Path, process: subprocess.Popen) -> str:
    until = time.monotonic() + 60
    while not port_file.is_file() or not port_file.read_text().strip():
        if process.poll() is not None or time.monotonic() > until:
            raise RuntimeError("Chromium did not start")
        time.sleep(0.1)
    port = port_file.read_text().split()[0]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=30) as answer:
        return next(p["webSocketDebuggerUrl"] for p in json.loads(answer.read()) if p["type"] == "page")


def lay_out(page: Page, name: str, api: dict[str, Any], layout: dict[str, Any]) -> dict[str, Any]:
    """Return the UI workflow of ``api``; it stays open on the page.

    Raises:
        RuntimeError: the layout leaves a node out, or names one twice.
    """
    workflow = page.run(LAY_OUT, {"name": name, "api": api, "layout": layout, "gaps": GAPS})
    workflow["extra"].pop("ds", None)
    return {**workflow, "id": str(uuid.uuid5(uuid.NAMESPACE_URL, name))}


def screenshot_of(page: Page, titles: Sequence[str] = ()) -> Image.Image:
    """Return a screenshot of the open workflow's groups of these titles, or of all of it."""
    x, y, width, height = page.run(FRAME, list(titles))
    return page.screenshot().crop((round(x), round(y), round(x + width), round(y + height)))


def write(name: str, server: Server) -> None:
    """Write ``workflows/<name>.json``, and ``.jpg`` if there is none."""
    api = json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text("utf-8"))
    layout = json.loads((ROOT / "tools" / "comfy_harness" / "layouts" / f"{name}.json").read_text("utf-8"))
    with browser_page() as page:
        page.open(server)
        workflow = lay_out(page, name, api, layout)
        image = screenshot_of(page, layout.get("thumbnail", ()))
    (ROOT / "workflows" / f"{name}.json").write_text(json.dumps(workflow, indent=1) + "\n", "utf-8")
    card = ROOT / "workflows" / f"{name}.jpg"
    if not card.exists():
        ImageOps.fit(image, THUMBNAIL, Image.Resampling.LANCZOS).save(card, quality=85)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", nargs="+", help="name of a workflow, without .json")
    names = parser.parse_args().name
    with tempfile.TemporaryDirectory() as folder, running_server(prepare_base(Path(folder))) as server:
        for name in names:
            write(name, server)


if __name__ == "__main__":
    main()
