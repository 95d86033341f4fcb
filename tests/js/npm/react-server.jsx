// Renders answers as a server does: `node react-server.js '[{"name", "source"}]'` writes the HTML.
import { renderToString } from "react-dom/server";
import { App } from "./react-app.jsx";

process.stdout.write(renderToString(<App answers={JSON.parse(process.argv[2])} />));
