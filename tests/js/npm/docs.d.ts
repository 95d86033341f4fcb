// What the code of docs/CLIENTS.md takes for granted: what an app has already, and packages that are not installed here.
declare const url: string, eventsUrl: string, chatId: string, userId: string;
declare const output: HTMLElement, note: HTMLElement, question: HTMLInputElement, ask: HTMLButtonElement, cancel: HTMLButtonElement;
declare const speak: (text: string) => Promise<void>, hush: () => void;

declare module "react-native-mmkv" {
  export function createMMKV(): {
    getString(key: string): string | undefined;
    set(key: string, value: string): void;
    remove(key: string): boolean;
  };
}

declare module "vite" {
  export function defineConfig(config: object): object;
}

declare module "@vitejs/plugin-react" {
  export default function react(): object;
}
