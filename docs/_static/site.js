// On a phone a table of three or more columns that does not fit becomes cards; see site.css.
const phone = matchMedia("(max-width: 48em)");

function makeCards() {
  for (const table of document.querySelectorAll(".table-wrapper > table")) {
    table.classList.remove("cards");
    const headings = [...(table.tHead?.rows[0].cells ?? [])].map((each) => each.innerText);
    const { scrollWidth, clientWidth } = table.parentElement;
    const isWide = scrollWidth > clientWidth || table.classList.contains("faults");
    if (!phone.matches || headings.length < 3 || !isWide) continue;
    table.classList.add("cards");
    for (const row of table.tBodies[0].rows)
      [...row.cells].forEach((cell, column) => {
        if (column && headings[column]) cell.dataset.heading = headings[column];
      });
  }
}

makeCards();
phone.addEventListener("change", makeCards);

// What scrolls by itself can be scrolled with the keyboard, too.
for (const each of document.querySelectorAll("pre, .table-wrapper"))
  if (each.scrollWidth > each.clientWidth) each.tabIndex = 0;
