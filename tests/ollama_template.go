// Renders conversations by the template of a Modelfile, as Ollama does (its template/template.go):
// turns of one role that follow each other are one, and system messages are told apart as well.
// In: a JSON list of {"Modelfile", "Messages"}; out: a JSON list of texts.
package main

import (
	"encoding/json"
	"os"
	"regexp"
	"strings"
	"text/template"
)

type message struct{ Role, Content string }

func joined(given []message) (string, []*message) {
	var system []string
	var turns []*message
	for i := range given {
		turn := &given[i]
		if turn.Role == "system" {
			system = append(system, turn.Content)
		}
		if last := len(turns) - 1; last >= 0 && turns[last].Role == turn.Role {
			turns[last].Content += "\n\n" + turn.Content
		} else {
			turns = append(turns, turn)
		}
	}
	return strings.Join(system, "\n\n"), turns
}

func main() {
	var asked []struct {
		Modelfile string
		Messages  []message
	}
	if err := json.NewDecoder(os.Stdin).Decode(&asked); err != nil {
		panic(err)
	}
	between := regexp.MustCompile(`(?s)TEMPLATE """(.*?)"""`)
	texts := []string{}
	for _, one := range asked {
		source := between.FindStringSubmatch(one.Modelfile)[1]
		system, turns := joined(one.Messages)
		var text strings.Builder
		values := map[string]any{"System": system, "Messages": turns, "Response": ""}
		if err := template.Must(template.New("").Parse(source)).Execute(&text, values); err != nil {
			panic(err)
		}
		texts = append(texts, text.String())
	}
	if err := json.NewEncoder(os.Stdout).Encode(texts); err != nil {
		panic(err)
	}
}
