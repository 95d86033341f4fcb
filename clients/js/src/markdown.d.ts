export interface MarkdownView {
  /** The whole text so far. What is no continuation of the last one begins anew: a restart takes text back. */
  set(text: string): void;
  /** There is no more: what was held back is shown as it is. */
  end(): void;
}

/**
 * Shows Markdown in the element as it grows: never half a token of its syntax, never HTML of others. The first `set`
 * replaces all that the element holds. It needs marked 18, and one line among the page's styles, or columns move as
 * rows come:
 *
 *     table { table-layout: fixed; width: 100% }
 *
 * A child of the element is final as soon as another one stands behind it, and after `end()` all are. What is final is
 * not touched again: colour its code then, show its formulas, or put something in its place.
 */
export function markdown(element: Element): MarkdownView;
