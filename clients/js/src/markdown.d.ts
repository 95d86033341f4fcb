export interface MarkdownView {
  /** The whole text so far. What is no continuation of the last one begins anew. */
  set(text: string): void;
  /** There is no more: what was held back is shown as it is. */
  end(): void;
}

/** Shows Markdown in the element as it grows: never half a token of its syntax, never HTML of others. */
export function markdown(element: Element): MarkdownView;
