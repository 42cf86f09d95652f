"""The frame and the style of report.html."""

from string import Template

PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>
:root {
  --ink: #1c1e21; --soft: #65696f; --line: #e3e5e8; --page: #ffffff; --panel: #f6f7f8;
  --link: #0b62c1; --rare: #c24e00; --common: #0072b2; --frequent: #00805c; --chart: none;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e4e6e8; --soft: #9da2a8; --line: #33363a; --page: #191919; --panel: #222426;
    --link: #7db7f5; --rare: #ff8a3d; --common: #56b4e9; --frequent: #2fc79a;
    /* Charts are drawn on white: this turns white into the page and keeps the hues. */
    --chart: invert(.902) hue-rotate(180deg);
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; }
body {
  margin: 0 auto; padding: 2.5rem 1.5rem 5rem; max-width: 62rem; background: var(--page);
  color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans",
  "DejaVu Sans", sans-serif; overflow-wrap: break-word;
}
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0; letter-spacing: -.01em; }
h2 { font-size: 1.25rem; margin: 3rem 0 .8rem; padding-top: .9rem;
  border-top: 1px solid var(--line); }
header p { color: var(--soft); margin: .4rem 0 0; }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; margin: 1.1rem 0 1.6rem;
  font-size: .9rem; }
a { color: var(--link); text-decoration: none; }
a:hover { text-decoration: underline; }
p { margin: .6rem 0; max-width: 46rem; }
.remark { color: var(--soft); font-style: italic; }
code, pre { font: .86em/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono",
  monospace; }
p code, td code { background: var(--panel); padding: .1em .3em; border-radius: 4px; }
pre { background: var(--panel); border: 1px solid var(--line); border-radius: 8px;
  padding: .8rem 1rem; overflow: auto; max-height: 34rem; }
.numbers { display: grid; grid-template-columns: repeat(auto-fit, minmax(8rem, 1fr)); gap: .7rem;
  margin: 1.2rem 0; }
.numbers div { background: var(--panel); border-radius: 10px; padding: .7rem .9rem .8rem;
  border-top: 3px solid var(--soft); }
.numbers .rare { border-color: var(--rare); } .numbers .common { border-color: var(--common); }
.numbers .frequent { border-color: var(--frequent); }
.numbers span { display: block; color: var(--soft); font-size: .85rem; }
.numbers b { display: block; font-size: 1.75rem; line-height: 1.25; font-weight: 650;
  font-variant-numeric: tabular-nums; }
.numbers small { color: var(--soft); font-size: .78rem; }
span.rare { color: var(--rare); } span.common { color: var(--common); }
span.frequent { color: var(--frequent); }
td span.rare, td span.common, td span.frequent { font-size: .85em; }
.table { overflow-x: auto; margin: .9rem 0; }
details .table { overflow: auto; max-height: 34rem; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th { position: sticky; top: 0; background: var(--page); color: var(--soft); font-weight: 600;
  box-shadow: inset 0 -1px var(--line); }
th, td { padding: .32rem .8rem; text-align: right; white-space: nowrap; }
td { border-bottom: 1px solid var(--line); }
th.text, td.text { text-align: left; white-space: normal; }
th:first-child, td:first-child { padding-left: 0; }
tbody tr:hover { background: var(--panel); }
figure { margin: 1.3rem 0; }
figure img { max-width: 100%; height: auto; filter: var(--chart); }
figcaption { color: var(--soft); font-size: .88rem; max-width: 46rem; }
.gallery { display: grid; grid-template-columns: repeat(var(--columns), 1fr); gap: .6rem;
  margin: 1rem 0; }
.gallery span { color: var(--soft); font-size: .88rem; }
.gallery img { width: 100%; border-radius: 6px; display: block; }
details { margin: 1rem 0; }
summary { cursor: pointer; color: var(--link); }
@media print { nav { display: none; } details .table, pre { max-height: none; overflow: visible; } }
</style>
</head>
<body>
<header><h1>$title</h1><p>$subtitle</p></header>
<nav>$links</nav>
<main>
$body
</main>
</body>
</html>
""")
