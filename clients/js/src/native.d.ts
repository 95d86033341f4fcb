/** `fetch` by XMLHttpRequest, for React Native: its own fetch gives no body before the end. */
export function xhr(url: string, init?: any): Promise<any>;
