// What the theme's scripts leave undone for people who use a keyboard, a screen reader or a printer.
(() => {
  "use strict";
  const root = document.documentElement;

  // Files opened from a disk may not read each other: the search does without excerpts there.
  if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;

  // Boxes that scroll take the focus, so that the arrow keys move them.
  const boxes = "pre, div.math, div.math > *, .lossbook-scroll, .cell_output .output";
  const reach = () => {
    for (const box of document.querySelectorAll(boxes)) {
      const scrolls = box.scrollWidth > box.clientWidth && /auto|scroll/.test(getComputedStyle(box).overflowX);
      if (scrolls) box.tabIndex = 0;
      else if (box.tabIndex === 0) box.removeAttribute("tabindex");
    }
  };
  document.addEventListener("toggle", reach, true);
  document.addEventListener("DOMContentLoaded", () => {
    reach();
    document.fonts.ready.then(reach);
    new ResizeObserver(reach).observe(document.querySelector("main"));
  });

  // The theme takes the focus away from a button that was pressed; a keyboard needs it there.
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button || event.detail !== 0) return;
    setTimeout(() => {
      const dialog = document.querySelector("dialog[open]");
      if (dialog) dialog.addEventListener("close", () => button.focus(), { once: true });
      else button.focus();
    });
  }, true);

  // A copy is announced, not shown alone.
  document.addEventListener("DOMContentLoaded", () => {
    const status = document.body.appendChild(document.createElement("div"));
    status.className = "visually-hidden";
    status.setAttribute("role", "status");
    document.addEventListener("click", (event) => {
      if (!event.target.closest(".copybtn")) return;
      status.textContent = "Copied";
      setTimeout(() => { status.textContent = ""; }, 2000);
    });
  });

  // Paper is white.
  let theme = null;
  window.addEventListener("beforeprint", () => { theme = root.dataset.theme; root.dataset.theme = "light"; });
  window.addEventListener("afterprint", () => { root.dataset.theme = theme; });
})();
