"""The frame of a page: head, style, and the few elements that all pages are made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from cgdpm_med.apps.labels import COLOURS

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # a browser will refuse whatever is outside

_STYLE = """
:root { color-scheme: light dark;
  --ground: #f4f6f8; --card: #ffffff; --line: #dfe4ea; --text: #18212b; --muted: #5b6875;
  --good: #12643a; --good-ground: #d9f3e3; --alert: #8a4b00; --alert-ground: #ffeccb;
  --rv: #1f78d1; --lv: #d93a30; }
@media (prefers-color-scheme: dark) { :root {
  --ground: #10151b; --card: #19212a; --line: #2c3742; --text: #e6ebf0; --muted: #9aa8b5;
  --good: #8fe3b4; --good-ground: #143524; --alert: #ffca7a; --alert-ground: #3d2a0c;
  --rv: RV_COLOUR; --lv: LV_COLOUR; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 32px 24px 48px; }
header { display: flex; flex-wrap: wrap; align-items: center; justify-content: space-between; gap: 4px 24px;
  margin-bottom: 24px; }
header p { margin: 0; color: var(--muted); flex-basis: 100%; }
h1 { margin: 0; font-size: 26px; line-height: 1.25; letter-spacing: -.01em; overflow-wrap: anywhere; }
h2 { margin: 0 0 14px; font-size: 17px; }
h3 { margin: 18px 0 8px; font-size: 14px; color: var(--muted); font-weight: 600; }
h2 + h3, .key + h3 { margin-top: 0; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 20px 22px;
  margin-bottom: 18px; }
.pill { display: inline-block; padding: 2px 12px; border-radius: 999px; font-weight: 600; font-size: 13px;
  white-space: nowrap; overflow-wrap: normal; }
.pill.pass { color: var(--good); background: var(--good-ground); }
.pill.review { color: var(--alert); background: var(--alert-ground); }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 14px;
  margin-bottom: 18px; }
.figures div { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 14px 18px; }
.figures span { display: block; color: var(--muted); font-size: 13px; }
.figures b { font-size: 26px; font-weight: 650; letter-spacing: -.02em; font-variant-numeric: tabular-nums; }
small { color: var(--muted); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 7px 14px 7px 0; text-align: right; border-bottom: 1px solid var(--line); vertical-align: top;
  white-space: nowrap; }
th { font-weight: 600; }
thead th { color: var(--muted); font-size: 13px; vertical-align: bottom; }
th:first-child, .words { text-align: left; white-space: normal; overflow-wrap: anywhere; }
tbody th:first-child { font-weight: 500; min-width: 9em; }
td.words:last-child { min-width: 16em; }
tbody tr:last-child > * { border-bottom: 0; }
.plain th, .plain td { padding-top: 3px; padding-bottom: 3px; border: 0; }
.plain tbody th { color: var(--muted); width: 15em; }
.plain thead { display: none; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 10px; }
figure { margin: 0; break-inside: avoid; }
figure img { display: block; width: 100%; border-radius: 6px; background: #000; margin-bottom: 3px; }
figcaption { color: var(--muted); font-size: 12.5px; }
.tiles + .key { margin-top: 26px; }
.key { display: flex; flex-wrap: wrap; gap: 6px 20px; color: var(--muted); font-size: 13px; margin: 0 0 14px; }
.key i { display: inline-block; width: 14px; height: 4px; border-radius: 2px; margin-right: 7px;
  vertical-align: middle; }
.key i.bar { width: 110px; height: 9px; margin-left: 7px; }
ul { margin: 0; padding-left: 20px; }
td ul, td details { font-size: 13.5px; }
details { margin-top: 2px; }
summary { cursor: pointer; color: var(--muted); }
ul.notes { color: var(--muted); margin-top: 8px; font-size: 14px; }
.note, footer { color: var(--muted); font-size: 13.5px; }
.note { margin: 12px 0 0; }
.hash { font: 12.5px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
a { color: inherit; }
svg { display: block; width: 100%; min-width: 620px; height: auto; }
svg text { fill: var(--muted); font-size: 13px; }
svg .axis { stroke: var(--line); }
svg .lv { stroke: var(--lv); } svg .rv { stroke: var(--rv); }
svg .line { fill: none; stroke-width: 2.2; stroke-linejoin: round; }
svg .band { stroke: none; opacity: .18; }
svg .band.lv, svg .dot.lv { fill: var(--lv); } svg .band.rv, svg .dot.rv { fill: var(--rv); }
svg .mark { stroke: var(--muted); stroke-dasharray: 3 4; }
svg .whisker { stroke-width: 3; stroke-linecap: round; opacity: .35; }
svg .name { fill: var(--text); }
@media (max-width: 560px) {
  main { padding: 20px 12px 32px; }
  section { padding: 16px 14px; }
  .figures { grid-template-columns: repeat(auto-fit, minmax(120px, 1fr)); gap: 10px; }
  .tiles { grid-template-columns: repeat(auto-fill, minmax(120px, 1fr)); }
  table { font-size: 13.5px; }
  th, td { padding-right: 10px; }
  .plain tbody th { width: auto; min-width: 7em; }
  .plain td.words:last-child { min-width: 0; }
}
@media print {
  :root { color-scheme: light; --ground: #fff; --card: #fff; --line: #ccd3da; --text: #000; --muted: #48535e;
    --good: #12643a; --good-ground: #e6f6ec; --alert: #8a4b00; --alert-ground: #fff1d8;
    --rv: #1f78d1; --lv: #d93a30; }
  @page { margin: 13mm; }
  body { font-size: 10.5pt; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  main { max-width: none; padding: 0; }
  section, .figures div { border-radius: 6px; padding: 10px 14px; }
  .figures { grid-auto-flow: column; grid-template-columns: none; grid-auto-columns: 1fr; gap: 8px; }
  .figures b { font-size: 17pt; }
  tr, .figures, svg { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  .tiles { grid-template-columns: repeat(6, 1fr); }
  .scroll { overflow: visible; }
  svg { min-width: 0; }
}
"""


def page(title: str, body: str) -> str:
    """A whole document: ``title`` is text, ``body`` is HTML."""
    style = _STYLE.replace("RV_COLOUR", COLOURS[1]).replace("LV_COLOUR", COLOURS[3]).strip()
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}\n</style>\n</head>\n<body>\n<main>\n{body}\n"
        "<footer>For research; not a medical device.</footer>\n</main>\n</body>\n</html>\n"
    )


def section(title: str, *parts: str) -> str:
    """A titled block of HTML; nothing where it has no content."""
    content = "\n".join(part for part in parts if part)
    return f"<section>\n<h2>{escape(title)}</h2>\n{content}\n</section>" if content else ""


def pill(status: str) -> str:
    """The verdict, "pass" or "review", as a coloured label."""
    return f'<span class="pill {escape(status)}">{escape(status.capitalize())}</span>'


def figures(items: Iterable[tuple[str, str, str]]) -> str:
    """Large numbers: name, value with its unit, and a line below; all text."""
    cells = (
        f"<div><span>{escape(name)}</span><b>{escape(value)}</b><span>{escape(below)}</span></div>"
        for name, value, below in items
    )
    return f'<div class="figures">{"".join(cells)}</div>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, words: Sequence[int] = (), plain: bool = False) -> str:
    """Rows of HTML cells, the first of each naming the row; ``head`` is text.

    Columns ``words`` hold sentences, the others numbers; a ``plain`` table is a list of facts, its head unseen.
    """

    def cell(tag: str, column: int, content: str) -> str:
        kind = ' class="words"' if column in words else ""
        return f"<{tag}{kind}>{content}</{tag.split()[0]}>"

    titles = "".join(cell('th scope="col"', i, escape(text)) for i, text in enumerate(head))
    lines = ("".join(cell("td" if i else 'th scope="row"', i, text) for i, text in enumerate(row)) for row in rows)
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    style = ' class="plain"' if plain else ""
    return (
        f'<div class="scroll"><table{style}>\n<thead><tr>{titles}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody>\n</table></div>"
    )


def bullets(texts: Sequence[str], kind: str = "") -> str:
    """A list of sentences; nothing where there are none."""
    if not texts:
        return ""
    items = "".join(f"<li>{escape(text)}</li>" for text in texts)
    return f'<ul class="{kind}">{items}</ul>' if kind else f"<ul>{items}</ul>"


def folded(texts: Sequence[str], shown: int = 2) -> str:
    """The first of a list of sentences, and the others behind a word to click on where there are more than one."""
    if len(texts) <= shown + 1:
        return bullets(texts)
    rest = f"<details><summary>and {len(texts) - shown} more</summary>{bullets(texts[shown:])}</details>"
    return bullets(texts[:shown]) + rest
