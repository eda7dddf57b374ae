// Renders the equations that pymdownx.arithmatex marks, and those in the text cells of notebooks.
window.MathJax = {
  tex: { inlineMath: [["\\(", "\\)"], ["$", "$"]], displayMath: [["\\[", "\\]"], ["$$", "$$"]], tags: "none" },
  options: { ignoreHtmlClass: ".*|", processHtmlClass: "arithmatex" },
  startup: {
    ready() {
      document.querySelectorAll(".jp-RenderedMarkdown :is(p, li, td)").forEach((text) => text.classList.add("arithmatex"));
      MathJax.startup.defaultReady();
    },
  },
};
