// Makes app.wasm of app.js: a component that exports wasi:http/incoming-handler. The interfaces come with jco, in
// one version, and are written down here in the one that the engine inside of the component speaks.

import { cp, mkdir, mkdtemp, readFile, readdir, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { componentize } from "@bytecodealliance/componentize-js";

const THEIRS = "0.2.12";
const OURS = "0.2.10";

const jco = "node_modules/@bytecodealliance/jco";
const wit = await mkdtemp(join(tmpdir(), "hello-js-"));
try {
  await mkdir(join(wit, "deps"));
  await cp(join(jco, "lib/wit/builtin", THEIRS), join(wit, "deps"), { recursive: true });
  for (const name of await readdir(wit, { recursive: true })) {
    if (name.endsWith(".wit")) {
      const path = join(wit, name);
      await writeFile(path, (await readFile(path, "utf8")).replaceAll(THEIRS, OURS));
    }
  }
  const world = `package hello:js;\n\nworld app {\n    export wasi:http/incoming-handler@${OURS};\n}\n`;
  await writeFile(join(wit, "world.wit"), world);
  const { component } = await componentize({ sourcePath: "app.js", witPath: wit, worldName: "app" });
  await writeFile("app.wasm", component);
} finally {
  await rm(wit, { recursive: true });
}
