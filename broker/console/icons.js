// The few icons, drawn on a grid of 16.

import { svg } from "./dom.js";

const PATHS = {
  play: "M4 2.5v11l9-5.5z",
  pause: "M4 2.5h3v11H4zM9 2.5h3v11H9z",
  back: "M3 2.5h2v11H3zM13 2.5v11L6 8z",
  forward: "M11 2.5h2v11h-2zM3 2.5v11L10 8z",
};

export const icon = (name) =>
  svg(
    "svg",
    { viewBox: "0 0 16 16", width: "14", height: "14", "aria-hidden": "true", fill: "currentColor" },
    svg("path", { d: PATHS[name] }),
  );
