declare module 'parse-prometheus-text-format' {
  export interface Family {
    name: string;
    help: string;
    type: string;
    metrics: { value?: string; labels?: Record<string, string> }[];
  }
  /** A port of the Prometheus project's own Python parser. Throws on text that is not the exposition format. */
  export default function parse(text: string): Family[];
}
