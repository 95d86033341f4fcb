// What the code of docs/CLIENTS.md takes for granted: what an app has already, and packages that are not installed here.
declare const url: string, eventsUrl: string, chatId: string, userId: string, id: string, headers: Record<string, string>;
declare const output: HTMLElement, note: HTMLElement, question: HTMLInputElement, ask: HTMLButtonElement, cancel: HTMLButtonElement;
declare const speak: (text: string) => Promise<void>, hush: () => void;
declare const hljs: { highlightElement(code: Element): void };
declare const renderMathInElement: (block: Element, how: object) => void;
declare const process: { env: Record<string, string> };

declare module "@react-native-async-storage/async-storage" {
  const AsyncStorage: import("lastevent").Store;
  export default AsyncStorage;
}
declare module "react-native" {
  export const AppState: {
    addEventListener(kind: "change", listener: (state: "active" | "background" | "inactive") => void): { remove(): void };
  };
}
declare module "react-native-mmkv" {
  export function createMMKV(): {
    getString(key: string): string | undefined;
    set(key: string, value: string): void;
    remove(key: string): boolean;
  };
}

declare module "@vitejs/plugin-react";
declare module "next/dynamic";
declare module "node:stream";
declare module "node:stream/promises";
declare module "vite";
