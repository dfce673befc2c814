// What scrolls by itself can be scrolled with the keyboard, too.
for (const each of document.querySelectorAll("pre, .table-wrapper"))
  if (each.scrollWidth > each.clientWidth) each.tabIndex = 0;
