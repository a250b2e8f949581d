import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { brotliCompressSync, constants, gzipSync } from "node:zlib";
import vue from "@vitejs/plugin-vue";
import { defineConfig, type Plugin } from "vite";

const here = (path: string): string => fileURLToPath(new URL(path, import.meta.url));
const built = here("../engine/pages/built");
const EMBEDDED = "redeem-card"; // shops' pages name this file, so its address has no digest

/** Writes a .br and a .gz beside each built file, so that the engine compresses nothing while it serves. */
function compressed(): Plugin {
  return {
    name: "compressed",
    apply: "build",
    closeBundle() {
      for (const entry of readdirSync(built, { recursive: true, withFileTypes: true })) {
        if (!entry.isFile() || !/\.(html|js|css|svg)$/.test(entry.name)) continue;
        const path = join(entry.parentPath, entry.name);
        const bytes = readFileSync(path);
        const quality = { [constants.BROTLI_PARAM_QUALITY]: 11, [constants.BROTLI_PARAM_SIZE_HINT]: bytes.length };
        writeFileSync(`${path}.br`, brotliCompressSync(bytes, { params: quality }));
        writeFileSync(`${path}.gz`, gzipSync(bytes, { level: 9 }));
      }
    },
  };
}

export default defineConfig({
  // A proxy may let customers see /card, and nobody else /admin: each page has its files below its own address.
  experimental: {
    renderBuiltUrl: (file, { hostType, hostId }) =>
      hostType === "html" ? `/${hostId === "card.html" ? "card" : "admin"}/${file}` : { relative: true },
  },
  plugins: [vue(), compressed()],
  build: {
    outDir: built,
    emptyOutDir: true,
    target: "es2022",
    assetsInlineLimit: 0, // the content security policy allows no inline script or style
    modulePreload: { polyfill: false },
    reportCompressedSize: false,
    rolldownOptions: {
      input: { index: here("index.html"), card: here("card.html"), [EMBEDDED]: here("src/embed/redeem-card.ts") },
      output: { entryFileNames: ({ name }) => (name === EMBEDDED ? "[name].js" : "assets/[name]-[hash].js") },
    },
  },
});
