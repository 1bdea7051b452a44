import js from "@eslint/js";
import tseslint from "typescript-eslint";

export default tseslint.config(
  { ignores: ["built/", ".tests/", "node_modules/"] },
  js.configs.recommended,
  tseslint.configs.recommendedTypeChecked,
  { languageOptions: { parserOptions: { project: "./tsconfig.json", tsconfigRootDir: import.meta.dirname } } },
  { files: ["*.js"], extends: [tseslint.configs.disableTypeChecked] },
  {
    rules: {
      eqeqeq: "error",
      // Names come from files of others: they reach the document as text only, never as markup.
      "no-restricted-properties": [
        "error",
        { property: "innerHTML", message: "Use textContent or make()." },
        { property: "outerHTML", message: "Use textContent or make()." },
        { property: "insertAdjacentHTML", message: "Use append()." },
        { property: "write", object: "document", message: "Use append()." },
      ],
    },
  },
  { files: ["test/**"], rules: { "@typescript-eslint/no-floating-promises": "off" } },
);
