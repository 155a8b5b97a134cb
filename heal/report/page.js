for (const button of document.querySelectorAll("button[data-all]")) {
  button.hidden = false;
  button.addEventListener("click", () => {
    const parts = [...document.querySelectorAll(`#${button.dataset.all} > details`)];
    const open = parts.some((part) => !part.open);
    for (const part of parts) part.open = open;
  });
}
