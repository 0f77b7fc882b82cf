#!/bin/sh
# Makes app.wasm of app.py. The interfaces of wasi:http go to wit/deps first: `wkg wit fetch` gets them.
set -eu
cd "$(dirname "$0")"
if [ ! -d wit/deps ]; then
    wkg wit fetch
fi
componentize-py -d wit -w app componentize app -o app.wasm
