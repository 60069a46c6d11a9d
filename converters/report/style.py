"""The look of the report: colours that work on light and dark screens and on paper."""

STYLE = """
:root{color-scheme:light dark;--ink:#1c2128;--dim:#5b6570;--line:#d5dae0;--paper:#fff;--soft:#f4f6f8;
--chosen:#0b7a4b;--passed:#2363b8;--refused:#b3261e;--skipped:#7b8490;--failed:#9a5b00}
@media (prefers-color-scheme:dark){:root{--ink:#e4e8ec;--dim:#9aa4af;--line:#3a424b;--paper:#14181d;--soft:#1d2329;
--chosen:#4cc38a;--passed:#74a9f5;--refused:#ff7b72;--skipped:#8b95a1;--failed:#e0a040}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:1180px;margin:0 auto;padding:28px 20px 60px}
h1{font-size:24px;margin:0 0 12px}
h2{font-size:19px;margin:36px 0 4px;border-top:1px solid var(--line);padding-top:20px}
dl{display:grid;grid-template-columns:max-content 1fr;gap:2px 18px;margin:0}
dt{color:var(--dim)}dd{margin:0;overflow-wrap:anywhere}
.verdict{font-size:16px;margin:6px 0 14px}
.plots{display:flex;flex-wrap:wrap;gap:16px}
figure{margin:0;flex:1 1 480px;min-width:0;background:var(--soft);border:1px solid var(--line);border-radius:8px;
padding:12px}
figcaption{color:var(--dim);font-size:13px;margin-bottom:4px}
svg{display:block;width:100%;height:auto}
svg text{font:12px system-ui,-apple-system,"Segoe UI",sans-serif;fill:var(--ink)}
svg .dim{fill:var(--dim)}svg .grid{stroke:var(--line);stroke-width:1}
svg .front{stroke:var(--dim);stroke-width:1.5;stroke-dasharray:4 3;fill:none}
svg .chosen{--c:var(--chosen)}svg .passed{--c:var(--passed)}svg .refused{--c:var(--refused)}
svg circle{fill:var(--c);fill-opacity:.35;stroke:var(--c);stroke-width:1.5}
svg .bar{stroke:var(--c);stroke-width:2}svg .mark{fill:var(--c)}
svg .limit{stroke:var(--refused);stroke-width:1;stroke-dasharray:3 3}
.scroll{overflow-x:auto;margin-top:16px}
table{border-collapse:collapse;width:100%;font-size:14px}
th{text-align:left;color:var(--dim);font-weight:600;white-space:nowrap}
th,td{padding:6px 10px;border-bottom:1px solid var(--line);vertical-align:top}
td.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
td.n small{color:var(--dim)}td.why{min-width:240px}
tr.chosen{background:var(--soft);font-weight:600}
tr.skipped td{color:var(--dim)}
.tag{border:1px solid currentColor;border-radius:9px;padding:0 8px;font-size:12px;white-space:nowrap}
.tag.chosen{color:var(--chosen)}.tag.passed{color:var(--passed)}.tag.refused{color:var(--refused)}
.tag.failed{color:var(--failed)}.tag.skipped{color:var(--skipped)}
.kind{font:12px ui-monospace,monospace;color:var(--dim)}
.note,footer{color:var(--dim);font-size:13px}
@media print{figure{break-inside:avoid}tr{break-inside:avoid}}
"""
